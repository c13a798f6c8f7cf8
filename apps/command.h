// What the subcommands of the program share. Each is a file of its name with one function that adds
// the subcommand to the program:
//
//   void add_example(CLI::App& program, ExitCode& exit_code) {
//     auto flags = std::make_shared<ExampleFlags>();  // lives as long as the program's callbacks
//     CLI::App* command = add_command(program, flags->common, "example", "Does an example.",
//                                     "flashmha example --size 3");
//     command->add_option("--size", flags->size, "Number of examples")->capture_default_str();
//     command->callback([flags, &exit_code] {
//       prepare(flags->common);
//       exit_code = run(*flags);
//     });
//   }
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "flashmha/device.h"

namespace flashmha::app {

// What the program returns to the shell.
enum class ExitCode : int {
  ok = 0,
  failed = 1,  // a check did not hold, or the work broke off
  usage = 2,   // unknown flags or bad input; the message is on stderr
};

// JSON that keeps the order in which keys were written.
using Json = nlohmann::ordered_json;

// Flags that every subcommand has.
struct CommonFlags {
  std::string json_path;  // --json FILE; empty: no file
  int threads = 0;        // --threads N; 0: the library's default
};

// A subcommand with the common flags. `example` is a command line, printed below its help.
CLI::App* add_command(CLI::App& program, CommonFlags& flags, const std::string& name,
                      const std::string& description, const std::string& example);

// For ->transform: only these names, each for its value; help and errors list them.
template <class Value>
CLI::Validator one_of(const std::map<std::string, Value>& values) {
  std::string names;
  for (const auto& [name, value] : values)
    names += (names.empty() ? "{" : ",") + name;
  names += "}";
  const auto translate = [values, names](std::string& input) -> std::string {
    const auto found = values.find(input);
    if (found == values.end()) return input + " is not in " + names;
    input = std::to_string(static_cast<int>(found->second));
    return {};
  };
  return {translate, names};
}

// --device NAME, for commands that run a model.
void add_device_flag(CLI::App& command, Device& device);

// Applies the common flags; call it before the work starts. Throws Error(io) at once if the JSON
// file could not be written at the end.
void prepare(const CommonFlags& flags);

// Writes the report to --json FILE, if it was given: whole or not at all, so that no reader ever
// meets half a file. Keys follow the flags (seq_length for --seq-length), and every figure has its
// unit in its key (median_ms, peak_bytes). Throws Error(io).
void write_json(const CommonFlags& flags, const Json& report);

void add_benchmark(CLI::App& program, ExitCode& exit_code);
void add_generate(CLI::App& program, ExitCode& exit_code);
void add_info(CLI::App& program, ExitCode& exit_code);
void add_sanity_check(CLI::App& program, ExitCode& exit_code);
void add_train(CLI::App& program, ExitCode& exit_code);

}  // namespace flashmha::app
