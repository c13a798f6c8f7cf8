// Continue a text with a model from a directory: config.json, safetensors and tokenizer.json as
// Hugging Face publishes them, or what `flashmha train` wrote.
//
//   example_generate DIR "Once upon a time"
#include <cstdio>
#include <exception>
#include <string>

#include "flashmha/checkpoint.h"
#include "flashmha/text_generation.h"

using namespace flashmha;

namespace {

void continue_text(const std::string& directory, const std::string& prompt) {
  const auto model = model::load_pretrained(directory);
  const text::Tokenizer tokenizer = text::Tokenizer::for_model(directory);

  model::TextGenerationOptions options;
  options.generation.max_new_tokens = 64;
  options.generation.sampling = {.temperature = 0.8, .top_p = 0.95, .seed = 1};
  options.generation.stop_token_ids = model::read_stop_token_ids(directory, model->config());
  options.stop_strings = {"\n\n"};
  options.on_text = [](std::int64_t, std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    return true;  // false would end it here
  };
  const auto results = generate_text(*model, tokenizer, {&prompt, 1}, options);
  std::printf("\n%zu tokens, ended by %s\n", results[0].tokens.size(),
              std::string(finish_reason_name(results[0].finish_reason)).c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL_DIR PROMPT\n", argv[0]);
    return 2;
  }
  try {
    continue_text(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
