#include "flashmha/text_generation.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "core/check.h"
#include "io/json.h"
#include "model/stop_strings.h"

namespace flashmha::model {
namespace {

// The text of a row, as its tokens come.
class RowText {
 public:
  RowText(const text::Tokenizer& tokenizer, std::span<const std::int64_t> prompt,
          std::span<const std::string> stop_strings)
      : decoder_(tokenizer), stops_(stop_strings) {
    decoder_.skip(prompt);
  }

  // The text that is certain now; all that is left, if the token was the last.
  std::string push(std::int64_t token, bool is_last) {
    ++num_tokens_;
    std::string certain = stops_.push(decoder_.push(token));
    if (is_last) {
      certain += stops_.push(decoder_.finish());
      certain += stops_.finish();
    }
    text_ += certain;
    return certain;
  }

  std::int64_t num_tokens() const { return num_tokens_; }
  bool has_stopped() const { return stops_.found(); }
  std::string take_text() { return std::move(text_); }

 private:
  text::StreamDecoder decoder_;
  StopStrings stops_;
  std::string text_;
  std::int64_t num_tokens_ = 0;
};

// Text and reason of rows whose tokens were followed one by one.
std::vector<GeneratedText> followed(const CausalLM& model, const text::Tokenizer& tokenizer,
                                    std::span<const std::vector<std::int64_t>> ids,
                                    const TextGenerationOptions& options) {
  std::vector<RowText> rows;
  for (const std::vector<std::int64_t>& prompt : ids) {
    for (std::int64_t i = 0; i < options.generation.num_return_sequences; ++i)
      rows.emplace_back(tokenizer, prompt, options.stop_strings);
  }
  GenerationOptions generation = options.generation;
  generation.on_token = [&](std::int64_t row, std::int64_t token) {
    const bool goes_on = !options.generation.on_token || options.generation.on_token(row, token);
    RowText& text = rows[static_cast<std::size_t>(row)];
    const auto& stops = generation.stop_token_ids;
    const bool is_last = !goes_on || text.num_tokens() + 1 == generation.max_new_tokens ||
                         std::ranges::find(stops, token) != stops.end();
    const std::string certain = text.push(token, is_last);
    const bool wanted = certain.empty() || !options.on_text || options.on_text(row, certain);
    return goes_on && wanted && !text.has_stopped();
  };
  std::vector<GeneratedText> results;
  for (Generated& generated : generate(model, ids, generation)) {
    RowText& row = rows[results.size()];
    if (row.has_stopped()) generated.finish_reason = FinishReason::stop_string;
    results.push_back({std::move(generated), row.take_text()});
  }
  return results;
}

}  // namespace

std::vector<std::vector<std::int64_t>> encode_prompts(const text::Tokenizer& tokenizer,
                                                      std::span<const std::string> prompts) {
  std::vector<std::vector<std::int64_t>> ids;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    ids.push_back(tokenizer.encode(prompts[i]));
    if (!ids.back().empty()) continue;
    check(tokenizer.bos_token_id().has_value(),
          "[encode_prompts] prompt {} must not be empty: the tokenizer has no first token (bos) to "
          "start from",
          i);
    ids.back().push_back(*tokenizer.bos_token_id());
  }
  return ids;
}

void check_text_generation(const TextGenerationOptions& options) {
  check_generation(options.generation);
  for (const std::string& string : options.stop_strings)
    check(!string.empty(), "[generate_text] stop_strings must not be empty");
  check(options.generation.num_beams == 1 || (options.stop_strings.empty() && !options.on_text),
        "[generate_text] num_beams ({}) excludes stop_strings and on_text: which tokens stay is "
        "known at the end only",
        options.generation.num_beams);
}

std::vector<GeneratedText> generate_text(const CausalLM& model, const text::Tokenizer& tokenizer,
                                         std::span<const std::string> prompts,
                                         const TextGenerationOptions& options) {
  check_text_generation(options);
  const std::vector<std::vector<std::int64_t>> ids = encode_prompts(tokenizer, prompts);
  if (options.generation.num_beams == 1) return followed(model, tokenizer, ids, options);
  std::vector<GeneratedText> results;
  for (Generated& generated : generate(model, ids, options.generation)) {
    text::StreamDecoder decoder(tokenizer);
    decoder.skip(ids[static_cast<std::size_t>(generated.prompt)]);
    std::string text;
    for (const std::int64_t token : generated.tokens)
      text += decoder.push(token);
    text += decoder.finish();
    results.push_back({std::move(generated), std::move(text)});
  }
  return results;
}

std::vector<std::int64_t> read_stop_token_ids(const std::string& directory,
                                              const ModelConfig& config) {
  const std::string path = directory + "/generation_config.json";
  if (!std::filesystem::exists(path)) return config.eos_token_ids;
  const std::string where = "[read_stop_token_ids] " + path;
  const io::Json json = io::read_json_file(path, where);
  const io::JsonObject object(json, where);
  if (!object.has("eos_token_id")) return config.eos_token_ids;
  if (!object.at("eos_token_id").is_array()) return {object.integer("eos_token_id")};
  std::vector<std::int64_t> ids;
  for (const io::Json& id : object.array("eos_token_id")) {
    if (!id.is_number_integer())
      object.refuse("eos_token_id", "must be a number or a list of them");
    ids.push_back(id.get<std::int64_t>());
  }
  return ids;
}

}  // namespace flashmha::model
