#include "flashmha/generation.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/core/expect_error.h"
#include "tests/model/fixture.h"

namespace flashmha {
namespace {

using model::AttentionKind;
using model::CacheKind;
using model::CausalLM;
using model::GenerationOptions;
using model::ModelConfig;
using namespace test;

Tokens row_of(const Tensor& tokens, std::int64_t row, std::int64_t begin = 0) {
  const auto* first = tokens.view().select(0, row).as<std::int64_t>();
  return {first + begin, first + tokens.size(1)};
}

// Greedy tokens without a cache, by the logits of a forward over everything each time.
Tokens expected_tokens(const CausalLM& model, const TensorView& prompt, std::int64_t count) {
  Tensor tokens = Tensor::empty({1, prompt.size(1) + count}, DType::int64);
  copy(prompt, tokens.view().slice(1, 0, prompt.size(1)));
  for (std::int64_t seqlen = prompt.size(1); seqlen < tokens.size(1); ++seqlen) {
    const Tensor logits = model.forward({.input_ids = tokens.view().slice(1, 0, seqlen)});
    const float* last = logits.as<float>() + (seqlen - 1) * logits.size(2);
    tokens.as<std::int64_t>()[seqlen] = std::max_element(last, last + logits.size(2)) - last;
  }
  return row_of(tokens, 0, prompt.size(1));
}

// All caches, plain and flash, prompts of three lengths padded on the left: what each prompt gives
// alone.
void expect_caches_agree(std::int64_t window, const std::vector<CacheKind>& kinds) {
  const std::vector<std::int64_t> lengths = {9, 5, 1};
  constexpr std::int64_t kNewTokens = 12;
  for (const AttentionKind kind : {AttentionKind::plain, AttentionKind::flash}) {
    ModelConfig config = tiny_config(kind);
    config.attention.sliding_window = window;
    CausalLM model(config);
    const Tensor prompts = random_ids(3, 9, config.vocab_size, test_seed() + 1);
    const Tensor mask = left_padding_mask(lengths);
    const std::vector<Tokens> expected = init_clear_choices(model, test_seed(), [&] {
      std::vector<Tokens> tokens;
      for (std::int64_t row = 0; row < 3; ++row) {
        const TensorView alone = prompts.view()
                                     .slice(0, row, row + 1)
                                     .slice(1, 9 - lengths[static_cast<std::size_t>(row)], 9);
        tokens.push_back(expected_tokens(model, alone, kNewTokens));
      }
      return tokens;
    });
    const auto expect_rows = [&](const Tensor& tokens, std::string_view name) {
      ASSERT_EQ(tokens.shape(), (Shape{3, 9 + kNewTokens}));
      for (std::int64_t row = 0; row < 3; ++row) {
        EXPECT_EQ(row_of(tokens, row, 9), expected[static_cast<std::size_t>(row)])
            << name << ", " << attention_kind_name(kind) << ", row " << row;
      }
    };
    const GenerationOptions options{.max_new_tokens = kNewTokens};
    expect_rows(generate(model, prompts, mask, nullptr, options), "no cache");
    for (const CacheKind cache : kinds) {
      nn::KVCaches caches = make_caches(config, cache, 9 + kNewTokens);
      expect_rows(generate(model, prompts, mask, &caches, options), cache_kind_name(cache));
      caches.reset();
      expect_rows(generate(model, prompts, mask, &caches, options), cache_kind_name(cache));
    }
  }
}

TEST(B8, model_generates_the_same_through_every_cache) {
  expect_caches_agree(0,
                      {CacheKind::dynamic_cache, CacheKind::static_cache, CacheKind::paged_cache});
}

TEST(B8, model_generates_the_same_through_every_cache_with_a_window) {
  expect_caches_agree(4, {CacheKind::sliding_cache, CacheKind::dynamic_cache,
                          CacheKind::static_cache, CacheKind::paged_cache});
}

TEST(Generation, RowsStopAtTheEndToken) {
  CausalLM model(tiny_config());
  model.init_weights(test_seed());
  const Tensor prompts = random_ids(2, 6, 50, test_seed() + 1);
  const Tensor free_run = generate(model, prompts, {}, nullptr, {.max_new_tokens = 10});
  const Tokens first = row_of(free_run, 0, 6);
  const Tokens second = row_of(free_run, 1, 6);
  // The end token is what the first row says third, or whenever it first said the same.
  const std::int64_t end = first[2];
  const auto length_until = [&](const Tokens& tokens) {
    return std::min<std::ptrdiff_t>(std::ranges::find(tokens, end) - tokens.begin() + 1, 10);
  };
  const Tensor stopped =
      generate(model, prompts, {}, nullptr,
               {.max_new_tokens = 10, .stop_token_ids = {end}, .pad_token_id = 49});
  EXPECT_EQ(stopped.size(1), 6 + std::max(length_until(first), length_until(second)));
  const Tokens row = row_of(stopped, 0, 6);
  for (std::size_t i = 0; i < row.size(); ++i) {
    const bool running = static_cast<std::ptrdiff_t>(i) < length_until(first);
    EXPECT_EQ(row[i], running ? first[i] : 49) << i;
  }
}

TEST(Generation, NothingToDoGivesThePrompt) {
  CausalLM model(tiny_config());
  const Tensor prompts = Tensor::from<std::int32_t>({3, 1, 4, 1}, {2, 2});
  const Tensor tokens = generate(model, prompts, {}, nullptr, {.max_new_tokens = 0});
  EXPECT_EQ(tokens.shape(), (Shape{2, 2}));
  EXPECT_EQ(row_of(tokens, 1), (Tokens{4, 1}));
}

TEST(Generation, RefusesBadInput) {
  CausalLM model(tiny_config());
  const Tensor prompts = random_ids(2, 4, 50, 1);
  const Tensor right_padded = Tensor::from<std::int64_t>({1, 1, 1, 1, 1, 1, 1, 0}, {2, 4});
  expect_error(ErrorCode::invalid_argument,
               {"[generate] prompts must be padded on the left; the last token of row 1"},
               [&] { generate(model, prompts, right_padded); });
  const Tensor short_mask = Tensor::from<std::int64_t>({1, 1}, {2, 1});
  expect_error(ErrorCode::invalid_argument, {"attention_mask must have the shape of prompts"},
               [&] { generate(model, prompts, short_mask); });
  expect_error(ErrorCode::invalid_argument, {"max_new_tokens must not be negative; got -1"},
               [&] { generate(model, prompts, {}, nullptr, {.max_new_tokens = -1}); });
  nn::KVCaches caches = make_caches(model.config(), CacheKind::dynamic_cache, 0);
  generate(model, prompts, {}, &caches, {.max_new_tokens = 2});
  expect_error(ErrorCode::invalid_argument, {"caches must be empty; they hold 5 tokens"},
               [&] { generate(model, prompts, {}, &caches); });
  expect_error(ErrorCode::invalid_argument, {"a sliding cache needs a model with a sliding_window"},
               [&] { make_caches(model.config(), CacheKind::sliding_cache, 8); });
  nn::KVCaches too_few = make_caches(model.config(), CacheKind::dynamic_cache, 0);
  too_few.layers.pop_back();
  expect_error(ErrorCode::invalid_argument, {"a cache for each of the 2 layers; got 1"},
               [&] { generate(model, prompts, {}, &too_few); });
}

}  // namespace
}  // namespace flashmha
