// Generation from text to text: prompts through a tokenizer, results as text, as it comes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashmha/generation.h"
#include "flashmha/tokenizer.h"

namespace flashmha::model {

struct TextGenerationOptions {
  GenerationOptions generation{};
  // A row whose text contains one of these is finished; its text ends before the one that was
  // complete first. Found wherever tokens begin and end. None may be empty.
  std::vector<std::string> stop_strings{};
  // Called with a row's new text as soon as it is certain: whole UTF-8 characters that are not the
  // beginning of a stop string. All parts of a row are its text. False ends the row. Neither this
  // nor stop_strings go together with beam search.
  std::function<bool(std::int64_t row, std::string_view text)> on_text{};
};

struct GeneratedText : Generated {
  // Of the new tokens, as it follows the prompt's; without special tokens and the stop string.
  std::string text{};
};

// The ids of prompts, special tokens in front included as the tokenizer adds them. An empty prompt
// becomes the tokenizer's first token; throws invalid_argument if it has none.
std::vector<std::vector<std::int64_t>> encode_prompts(const text::Tokenizer& tokenizer,
                                                      std::span<const std::string> prompts);

// Throws invalid_argument for options that are out of range or exclude each other; generate_text
// does it first.
void check_text_generation(const TextGenerationOptions& options);

// Results as of generate(). Throws invalid_argument.
std::vector<GeneratedText> generate_text(const CausalLM& model, const text::Tokenizer& tokenizer,
                                         std::span<const std::string> prompts,
                                         const TextGenerationOptions& options = {});

// The tokens that end a sequence: eos_token_id (a number or a list) of
// directory/generation_config.json if it is there and has it, else of the config. Throws io or
// invalid_argument for a file that is not as it should be.
std::vector<std::int64_t> read_stop_token_ids(const std::string& directory,
                                              const ModelConfig& config);

}  // namespace flashmha::model
