// Batches of prompts of different lengths: what each prompt gives alone, through every cache; rows
// that end, and why.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "flashmha/generation.h"
#include "tests/core/expect_error.h"
#include "tests/model/fixture.h"

namespace flashmha {
namespace {

using model::CacheKind;
using model::CausalLM;
using model::FinishReason;
using model::Generated;
using model::GenerationOptions;
using model::ModelConfig;
using namespace test;

std::vector<Tokens> random_prompts(const std::vector<std::int64_t>& lengths,
                                   std::int64_t vocab_size, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<std::int64_t> token(0, vocab_size - 1);
  std::vector<Tokens> prompts;
  for (const std::int64_t length : lengths) {
    prompts.emplace_back();
    for (std::int64_t i = 0; i < length; ++i)
      prompts.back().push_back(token(random));
  }
  return prompts;
}

const std::vector<std::int64_t> kLengths = {7, 1, 12, 3};

struct Case {
  std::string name;
  GenerationOptions options;
};

// Ways to choose tokens. Stop tokens end rows at different times, so that the batch shrinks.
std::vector<Case> cases() {
  const Tokens stops = {3, 17, 29};
  return {
      {"greedy", {.max_new_tokens = 14}},
      {"greedy with stops", {.max_new_tokens = 14, .stop_token_ids = stops}},
      {"penalised", {.max_new_tokens = 14, .sampling = {.repetition_penalty = 1.5}}},
      {"sampled",
       {.max_new_tokens = 14,
        .stop_token_ids = stops,
        .sampling = {.temperature = 1.2, .top_k = 30, .seed = test_seed()}}},
      {"beams", {.max_new_tokens = 9, .stop_token_ids = stops, .num_beams = 3}},
  };
}

void expect_equal(const Generated& actual, const Generated& expected, const std::string& what) {
  EXPECT_EQ(actual.tokens, expected.tokens) << what;
  EXPECT_EQ(actual.finish_reason, expected.finish_reason) << what;
  EXPECT_NEAR(actual.score, expected.score, 1e-4) << what;
}

// Each prompt alone, without a cache.
std::vector<Generated> generate_alone(const CausalLM& model, const std::vector<Tokens>& prompts,
                                      GenerationOptions options) {
  options.cache = std::nullopt;
  std::vector<Generated> alone;
  for (std::size_t row = 0; row < prompts.size(); ++row) {
    options.first_row = row;
    alone.push_back(generate(model, std::span(&prompts[row], 1), options).at(0));
  }
  return alone;
}

// Alone, in a batch, without a cache and through each of them.
void expect_rows_are_alone(const ModelConfig& config, std::vector<std::optional<CacheKind>> kinds) {
  CausalLM model(config);
  const std::vector<Tokens> prompts = random_prompts(kLengths, config.vocab_size, test_seed() + 1);
  for (const Case& c : cases()) {
    init_clear_choices(model, test_seed(), [&] {
      std::vector<Tokens> tokens;
      for (const Generated& row : generate_alone(model, prompts, c.options))
        tokens.push_back(row.tokens);
      return tokens;
    });
    const std::vector<Generated> alone = generate_alone(model, prompts, c.options);
    GenerationOptions options = c.options;
    for (const std::optional<CacheKind> kind : kinds) {
      options.cache = kind;
      const std::string name =
          c.name + ", " + (kind ? std::string(cache_kind_name(*kind)) : "no") + " cache";
      const std::vector<Generated> rows = generate(model, prompts, options);
      ASSERT_EQ(rows.size(), prompts.size()) << name;
      for (std::size_t row = 0; row < rows.size(); ++row) {
        EXPECT_EQ(rows[row].prompt, static_cast<std::int64_t>(row));
        expect_equal(rows[row], alone[row], name + ", row " + std::to_string(row));
      }
    }
  }
}

TEST(GenerationRows, are_what_they_are_alone) {
  expect_rows_are_alone(tiny_config(), {std::nullopt, CacheKind::dynamic_cache,
                                        CacheKind::static_cache, CacheKind::paged_cache});
}

TEST(GenerationRows, are_what_they_are_alone_with_plain_attention) {
  expect_rows_are_alone(tiny_config(model::AttentionKind::plain),
                        {std::nullopt, CacheKind::dynamic_cache});
}

TEST(GenerationRows, are_what_they_are_alone_with_a_window) {
  ModelConfig config = tiny_config();
  config.attention.sliding_window = 5;
  expect_rows_are_alone(config, {std::nullopt, CacheKind::sliding_cache, CacheKind::dynamic_cache,
                                 CacheKind::static_cache, CacheKind::paged_cache});
}

class GenerationEnds : public testing::Test {
 protected:
  GenerationEnds() : model_(tiny_config()), prompts_(random_prompts({4, 9, 2}, 50, test_seed())) {
    model_.init_weights(test_seed() + 1);
  }

  CausalLM model_;
  std::vector<Tokens> prompts_;
};

TEST_F(GenerationEnds, at_a_stop_token_at_the_length_or_when_told) {
  const std::vector<Generated> all = generate(model_, prompts_, {.max_new_tokens = 8});
  for (const Generated& row : all) {
    EXPECT_EQ(row.tokens.size(), 8u);
    EXPECT_EQ(row.finish_reason, FinishReason::length);
  }
  // Row 0 ends at its third token (or where it said the same before), row 1 by the callback after
  // its fifth, row 2 goes on, unless it meets row 0's token, too.
  const std::int64_t stop = all[0].tokens[2];
  std::vector<Tokens> seen(3);
  GenerationOptions options{.max_new_tokens = 8, .stop_token_ids = {49, stop}};
  options.on_token = [&](std::int64_t row, std::int64_t token) {
    seen[static_cast<std::size_t>(row)].push_back(token);
    return row != 1 || seen[1].size() < 5;
  };
  const std::vector<Generated> ended = generate(model_, prompts_, options);
  const std::vector<std::size_t> limits = {8, 5, 8};
  for (std::size_t row = 0; row < 3; ++row) {
    const Tokens& free = all[row].tokens;
    const auto is_stop = [&](std::int64_t token) { return token == stop || token == 49; };
    const auto until = static_cast<std::size_t>(std::ranges::find_if(free, is_stop) - free.begin());
    const std::size_t length = std::min(until + 1, limits[row]);
    EXPECT_EQ(ended[row].tokens, Tokens(free.begin(), free.begin() + std::ptrdiff_t(length)));
    EXPECT_EQ(ended[row].tokens, seen[row]);
    const FinishReason otherwise = row == 1 ? FinishReason::callback : FinishReason::length;
    EXPECT_EQ(ended[row].finish_reason, until < length ? FinishReason::stop_token : otherwise);
  }
}

TEST_F(GenerationEnds, results_may_be_several_a_prompt) {
  const GenerationOptions options{.max_new_tokens = 6,
                                  .num_return_sequences = 3,
                                  .sampling = {.temperature = 1.5, .seed = test_seed()}};
  const std::vector<Generated> results = generate(model_, prompts_, options);
  ASSERT_EQ(results.size(), 9u);
  for (std::size_t r = 0; r < 9; ++r) {
    EXPECT_EQ(results[r].prompt, static_cast<std::int64_t>(r / 3));
    const std::vector<Generated> alone =
        generate(model_, std::span(&prompts_[r / 3], 1),
                 {.max_new_tokens = 6, .sampling = options.sampling, .first_row = r});
    EXPECT_EQ(results[r].tokens, alone.at(0).tokens) << r;
  }
  EXPECT_NE(results[0].tokens, results[1].tokens);
  GenerationOptions other = options;
  other.sampling.seed += 1;
  EXPECT_NE(generate(model_, prompts_, other).at(0).tokens, results[0].tokens);
  other.sampling.seed -= 1;
  EXPECT_EQ(generate(model_, prompts_, other).at(0).tokens, results[0].tokens);
}

TEST_F(GenerationEnds, tensors_give_the_same_as_lists) {
  const GenerationOptions options{.max_new_tokens = 6,
                                  .pad_token_id = 7,
                                  .num_return_sequences = 2,
                                  .sampling = {.temperature = 1.5, .seed = test_seed()}};
  const std::vector<Generated> rows = generate(model_, prompts_, options);
  const Tensor ids = Tensor::zeros({3, 10}, DType::int32);  // wider than the longest prompt
  const Tensor mask = Tensor::zeros({3, 10}, DType::int64);
  for (std::int64_t row = 0; row < 3; ++row) {
    const Tokens& prompt = prompts_[static_cast<std::size_t>(row)];
    for (std::int64_t i = 0, at = (row + 1) * 10 - std::ssize(prompt); i < std::ssize(prompt);
         ++i, ++at) {
      ids.as<std::int32_t>()[at] = static_cast<std::int32_t>(prompt[static_cast<std::size_t>(i)]);
      mask.as<std::int64_t>()[at] = 1;
    }
  }
  const Tensor tokens = generate(model_, ids, mask, nullptr, options);
  ASSERT_EQ(tokens.shape(), (Shape{6, 16}));
  for (std::int64_t r = 0; r < 6; ++r) {
    const auto* line = tokens.as<std::int64_t>() + r * 16;
    for (std::int64_t i = 0; i < 10; ++i)
      EXPECT_EQ(line[i], ids.as<std::int32_t>()[r / 2 * 10 + i]);
    EXPECT_EQ(Tokens(line + 10, line + 16), rows[static_cast<std::size_t>(r)].tokens);
  }
}

TEST_F(GenerationEnds, without_new_tokens_there_is_an_empty_result) {
  for (const std::int64_t num_beams : {1, 2}) {
    const auto results = generate(model_, prompts_, {.max_new_tokens = 0, .num_beams = num_beams});
    ASSERT_EQ(results.size(), 3u);
    EXPECT_TRUE(results[2].tokens.empty());
    EXPECT_EQ(results[2].prompt, 2);
  }
  EXPECT_TRUE(generate(model_, std::span<const Tokens>{}).empty());
}

TEST_F(GenerationEnds, RefusesBadInput) {
  const auto refuse = [&](const GenerationOptions& options, const std::string& message) {
    expect_error(ErrorCode::invalid_argument, {message},
                 [&] { generate(model_, prompts_, options); });
  };
  refuse({.max_new_tokens = -1}, "max_new_tokens must not be negative; got -1");
  refuse({.stop_token_ids = {0, 50}}, "stop_token_ids must be in [0, 50); got 50");
  refuse({.num_beams = 0}, "num_beams (0) and num_return_sequences (1) must be positive");
  refuse({.num_return_sequences = 2}, "num_return_sequences (2) needs num_beams or a temperature");
  refuse({.num_return_sequences = 4, .num_beams = 3}, "(4) must be at most num_beams (3)");
  refuse({.sampling = {.temperature = 0.5}, .num_beams = 2},
         "num_beams (2) excludes a temperature above 0; got 0.5");
  refuse({.num_beams = 2, .on_token = [](std::int64_t, std::int64_t) { return true; }},
         "num_beams (2) excludes on_token");
  refuse({.num_beams = 2, .length_penalty = std::numeric_limits<double>::infinity()},
         "length_penalty must be finite; got inf");
  refuse({.sampling = {.temperature = -1.0}},
         "temperature must be finite and not negative; got -1");

  const auto refuse_prompt = [&](const Tokens& prompt, const std::string& message) {
    const std::vector<Tokens> prompts = {{1, 2}, prompt};
    expect_error(ErrorCode::invalid_argument, {message}, [&] { generate(model_, prompts); });
  };
  refuse_prompt({}, "prompt 1 must have at least one token");
  refuse_prompt({4, 50}, "tokens of prompt 1 must be in [0, 50); got 50");
  refuse_prompt({-1}, "tokens of prompt 1 must be in [0, 50); got -1");
}

TEST_F(GenerationEnds, a_model_that_gives_nan_is_refused) {
  const TensorView norm = weights_of(model_).at("model.norm.weight");
  fill(norm.slice(0, 0, 1), std::numeric_limits<double>::quiet_NaN());
  for (const GenerationOptions& options :
       {GenerationOptions{}, GenerationOptions{.sampling = {.temperature = 1.0}},
        GenerationOptions{.num_beams = 2}}) {
    expect_error(ErrorCode::invalid_argument, {"logits must be finite", "nan"},
                 [&] { generate(model_, prompts_, options); });
  }
}

}  // namespace
}  // namespace flashmha
