// flashmha generate: its flags, and what they mean.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "command.h"
#include "flashmha/checkpoint.h"
#include "flashmha/text_generation.h"

namespace flashmha::app {

struct GenerateFlags {
  CommonFlags common;
  std::string model;  // directory
  std::vector<std::string> prompts;
  std::string prompt_file;
  std::optional<double> temperature;  // not given: 0, or 1 with a flag that needs draws
  std::string cache = "dynamic";      // or "none"
  std::vector<std::string> stop_strings;
  bool ignore_eos = false;
  bool echo = false;
  bool no_stream = false;
  model::LoadOptions load;
  model::GenerationOptions generation;
};

// Adds all flags but the common ones.
void add_generate_flags(CLI::App& command, GenerateFlags& flags);

// --prompt, or the text of --prompt-file or of standard input without its last line feed. Throws
// Error(io).
std::vector<std::string> read_prompts(const GenerateFlags& flags);

// The options that the flags say, all but stop tokens and callbacks. Throws invalid_argument for
// flags that are out of range or contradict each other.
model::TextGenerationOptions generation_options(const GenerateFlags& flags);

}  // namespace flashmha::app
