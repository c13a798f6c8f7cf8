// Text in, text out: streaming, stop strings across tokens, prompts without tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "flashmha/text_generation.h"
#include "model/stop_strings.h"
#include "tests/core/expect_error.h"
#include "tests/io/folder.h"
#include "tests/model/fixture.h"

namespace flashmha {
namespace {

using model::CausalLM;
using model::encode_prompts;
using model::FinishReason;
using model::GeneratedText;
using model::StopStrings;
using model::TextGenerationOptions;
using namespace test;

// Where a text ends by the definition: at the first place where a prefix ends with a stop string.
std::string defined_end(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t length = 0; length <= text.size(); ++length) {
    const std::string prefix = text.substr(0, length);
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (prefix.ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return prefix.substr(0, length - longest);
  }
  return text;
}

TEST(StopStrings, are_found_however_a_text_is_cut) {
  std::mt19937_64 random(test_seed());
  const auto below = [&](std::size_t count) { return random() % count; };
  const auto random_text = [&](std::size_t length) {  // few letters: many near misses
    std::string text;
    for (std::size_t i = 0; i < length; ++i)
      text += "ab\n"[below(3)];
    return text;
  };
  int num_found = 0;
  for (int round = 0; round < 3000; ++round) {
    const std::string text = random_text(below(40));
    std::vector<std::string> stops;
    for (std::size_t i = below(3) + 1; i > 0; --i)
      stops.push_back(random_text(1 + below(6)));
    StopStrings matcher(stops);
    std::string shown, seen;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t length = std::min(text.size() - at, below(5));
      seen += text.substr(at, length);
      shown += matcher.push(text.substr(at, length));
      at += length;
      const std::string end = defined_end(text, stops);
      ASSERT_TRUE(end.starts_with(shown)) << "'" << shown << "' is beyond '" << end << "'";
      // Nothing is held back that cannot begin a stop string.
      const std::string held = seen.substr(std::min(seen.size(), shown.size()));
      const bool may_begin = std::ranges::any_of(
          stops, [&](const std::string& stop) { return stop.starts_with(held); });
      ASSERT_TRUE(matcher.found() || may_begin) << "'" << held << "' is held back";
    }
    shown += matcher.finish();
    ASSERT_EQ(shown, defined_end(text, stops)) << "text '" << text << "'";
    ASSERT_EQ(matcher.found(), shown.size() < text.size());
    num_found += matcher.found();
  }
  EXPECT_GT(num_found, 500);
}

TEST(StopStrings, ends_before_the_longest_of_those_that_end_first) {
  const std::vector<std::string> stops = {"b", "aab", "xyz"};
  StopStrings matcher(stops);
  EXPECT_EQ(matcher.push("1a"), "1");
  EXPECT_EQ(matcher.push("a"), "");
  EXPECT_EQ(matcher.push("bxyz"), "");
  EXPECT_TRUE(matcher.found());
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.finish(), "");
}

model::ModelConfig byte_config() {
  model::ModelConfig config = tiny_config();
  config.vocab_size = 257;
  return config;
}

class TextGeneration : public testing::Test {
 protected:
  TextGeneration() : model_(byte_config()), tokenizer_(text::Tokenizer::bytes()) {
    model_.init_weights(test_seed());
  }

  std::vector<GeneratedText> run(const TextGenerationOptions& options) const {
    return generate_text(model_, tokenizer_, prompts_, options);
  }

  CausalLM model_;
  text::Tokenizer tokenizer_;
  std::vector<std::string> prompts_ = {"Once upon a time", "\xED\x95\x9C\xEA\xB5\xAD", "x"};
};

// Characters [begin, end) of UTF-8.
std::string characters(const std::string& text, int begin, int end) {
  std::string part;
  int index = -1;
  for (const char c : text) {
    index += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    if (index >= begin && index < end) part += c;
  }
  return part;
}

TEST_F(TextGeneration, is_the_text_of_the_tokens) {
  const model::GenerationOptions generation{.max_new_tokens = 24,
                                            .sampling = {.temperature = 1.5, .seed = test_seed()}};
  const std::vector<GeneratedText> results = run({.generation = generation});
  const std::vector<std::vector<std::int64_t>> ids = encode_prompts(tokenizer_, prompts_);
  const std::vector<model::Generated> expected = generate(model_, ids, generation);
  ASSERT_EQ(results.size(), 3u);
  for (std::size_t row = 0; row < 3; ++row) {
    EXPECT_EQ(results[row].tokens, expected[row].tokens);
    EXPECT_EQ(results[row].text, tokenizer_.decode(expected[row].tokens));
    EXPECT_EQ(results[row].finish_reason, FinishReason::length);
  }
}

TEST_F(TextGeneration, parts_are_the_text_and_valid) {
  std::vector<std::string> streamed(3);
  TextGenerationOptions options{
      .generation = {.max_new_tokens = 60, .sampling = {.temperature = 2.0, .seed = test_seed()}}};
  // Bytes at random are rarely UTF-8: characters of several bytes that break off must come out.
  options.on_text = [&](std::int64_t row, std::string_view text) {
    EXPECT_FALSE(text.empty());
    streamed[static_cast<std::size_t>(row)] += text;
    return true;
  };
  const std::vector<GeneratedText> results = run(options);
  for (std::size_t row = 0; row < 3; ++row)
    EXPECT_EQ(streamed[row], results[row].text);
}

TEST_F(TextGeneration, ends_at_a_stop_string_that_spans_tokens) {
  TextGenerationOptions options{.generation = {.max_new_tokens = 40}};
  options.generation.sampling = {.temperature = 1.5, .seed = test_seed()};
  const std::vector<GeneratedText> free = run(options);
  const std::string stop = characters(free[0].text, 3, 7);
  options.stop_strings = {stop, "never" + stop};
  std::string streamed;
  options.on_text = [&](std::int64_t row, std::string_view text) {
    if (row == 0) streamed += text;
    return true;
  };
  const std::vector<GeneratedText> stopped = run(options);
  const std::size_t at = free[0].text.find(stop);
  EXPECT_EQ(stopped[0].text, free[0].text.substr(0, at));
  EXPECT_EQ(streamed, stopped[0].text);
  EXPECT_EQ(stopped[0].finish_reason, FinishReason::stop_string);
  EXPECT_LT(stopped[0].tokens.size(), free[0].tokens.size());
  for (std::size_t row = 1; row < 3; ++row)
    EXPECT_EQ(stopped[row].text, free[row].text.substr(0, free[row].text.find(stop)));
}

TEST_F(TextGeneration, ends_when_the_reader_says_so) {
  TextGenerationOptions options{.generation = {.max_new_tokens = 30}};
  int num_parts = 0;
  options.on_text = [&](std::int64_t row, std::string_view) { return row != 1 || ++num_parts < 2; };
  const std::vector<GeneratedText> results = run(options);
  EXPECT_EQ(results[0].finish_reason, FinishReason::length);
  EXPECT_EQ(results[1].finish_reason,
            num_parts == 2 ? FinishReason::callback : FinishReason::length);
  EXPECT_LE(num_parts, 2);
}

TEST_F(TextGeneration, by_beam_search) {
  const model::GenerationOptions generation{
      .max_new_tokens = 6, .num_return_sequences = 2, .num_beams = 2};
  const std::vector<GeneratedText> results = run({.generation = generation});
  ASSERT_EQ(results.size(), 6u);
  for (const GeneratedText& result : results)
    EXPECT_EQ(result.text, tokenizer_.decode(result.tokens));
  EXPECT_GE(results[0].score, results[1].score);
}

// A vocabulary by SentencePiece takes the space away that a text begins with; what follows a prompt
// is none.
TEST(TextGenerationFromWords, goes_on_from_the_prompt) {
  const auto tokenizer =
      text::Tokenizer::from_file(FLASHMHA_TESTS_DIR "/truth/tokenizer_llama2.json");
  model::ModelConfig config = tiny_config();
  config.vocab_size = tokenizer.vocab_size();
  CausalLM model(config);
  model.init_weights(test_seed());
  const std::vector<std::string> prompts = {"the head"};
  const std::vector<std::int64_t> prompt = tokenizer.encode(prompts[0]);
  for (const std::int64_t num_beams : {1, 4}) {
    model::GenerationOptions generation{.max_new_tokens = 6, .num_return_sequences = 4};
    generation.num_beams = num_beams;
    if (num_beams == 1) {
      generation.num_return_sequences = 64;
      generation.sampling = {.temperature = 50.0, .seed = test_seed()};
    }
    for (const GeneratedText& result :
         generate_text(model, tokenizer, prompts, {.generation = generation})) {
      std::vector<std::int64_t> ids = prompt;
      ids.insert(ids.end(), result.tokens.begin(), result.tokens.end());
      EXPECT_EQ(prompts[0] + result.text, tokenizer.decode(ids));
    }
  }
}

TEST_F(TextGeneration, RefusesBadInput) {
  const auto refuse = [&](const TextGenerationOptions& options, const std::string& message) {
    expect_error(ErrorCode::invalid_argument, {message}, [&] { run(options); });
  };
  refuse({.stop_strings = {"a", ""}}, "stop_strings must not be empty");
  refuse({.generation = {.num_beams = 2}, .stop_strings = {"a"}},
         "num_beams (2) excludes stop_strings and on_text");
  refuse({.generation = {.max_new_tokens = -3}}, "max_new_tokens must not be negative; got -3");
  if (tokenizer_.bos_token_id()) return;
  prompts_ = {"a", ""};
  refuse({}, "prompt 1 must not be empty: the tokenizer has no first token");
}

class StopTokens : public testing::Test {
 protected:
  StopTokens() { config_.eos_token_ids = {7}; }

  std::vector<std::int64_t> read(const std::string& json) const {
    folder_.write("generation_config.json", json);
    return model::read_stop_token_ids(folder_.path(), config_);
  }

  Folder folder_;
  model::ModelConfig config_;
};

TEST_F(StopTokens, come_from_the_generation_config_or_the_config) {
  using Ids = std::vector<std::int64_t>;
  EXPECT_EQ(model::read_stop_token_ids(folder_.path(), config_), Ids{7});
  EXPECT_EQ(read(R"({"temperature": 0.6})"), Ids{7});
  EXPECT_EQ(read(R"({"eos_token_id": null})"), Ids{7});
  EXPECT_EQ(read(R"({"eos_token_id": 3})"), Ids{3});
  EXPECT_EQ(read(R"({"eos_token_id": [128001, 128008, 128009]})"), (Ids{128001, 128008, 128009}));
  expect_error(ErrorCode::invalid_argument, {"generation_config.json", "eos_token_id"},
               [&] { read(R"({"eos_token_id": [1, "two"]})"); });
  expect_error(ErrorCode::invalid_argument, {"generation_config.json", "eos_token_id"},
               [&] { read(R"({"eos_token_id": "two"})"); });
  expect_error(ErrorCode::invalid_argument, {"generation_config.json"}, [&] { read("{"); });
}

}  // namespace
}  // namespace flashmha
