// The program `flashmha`: its subcommands, and what every one of them does with errors.
#include <fmt/format.h>

#include <exception>
#include <new>

#include "command.h"
#include "flashmha/error.h"
#include "flashmha/version.h"

namespace flashmha::app {
namespace {

ExitCode parse_and_run(CLI::App& program, const ExitCode& exit_code, int argc, char** argv) {
  try {
    program.parse(argc, argv);
    return exit_code;
  } catch (const CLI::ParseError& error) {  // --help and --version come this way, too
    return program.exit(error) == 0 ? ExitCode::ok : ExitCode::usage;
  } catch (const Error& error) {
    fmt::print(stderr, "flashmha: {}\n", error.what());
    const bool input_was_bad = error.code() == ErrorCode::invalid_argument ||
                               error.code() == ErrorCode::unsupported ||
                               error.code() == ErrorCode::io;
    return input_was_bad ? ExitCode::usage : ExitCode::failed;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "flashmha: out of memory\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "flashmha: {}\n", error.what());
  }
  return ExitCode::failed;
}

}  // namespace
}  // namespace flashmha::app

int main(int argc, char** argv) {
  using namespace flashmha::app;
  CLI::App program{"FlashMHA: exact attention in C++, on its own.", "flashmha"};
  program.set_version_flag("--version", "flashmha " + std::string(flashmha::kVersion));
  program.require_subcommand(1);
  program.footer(
      "Exit codes: 0 ok, 1 a check failed, 2 bad flags or input.\n"
      "Example: flashmha benchmark --batch-size 2 --seq-length 256");
  ExitCode exit_code = ExitCode::ok;
  add_sanity_check(program, exit_code);
  add_benchmark(program, exit_code);
  add_train(program, exit_code);
  add_generate(program, exit_code);
  add_info(program, exit_code);
  return static_cast<int>(parse_and_run(program, exit_code, argc, argv));
}
