// The rows of the mission, one by one: named cases on the kernels that the CPU uses, and small
// results that can be worked out by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/attention/api.h"
#include "tests/attention/run_case.h"
#include "tests/compare.h"

namespace flashmha::tests {
namespace {

constexpr DType kStorage[] = {DType::float32, DType::bfloat16, DType::float16};

// The case on every fast kernel, in every storage type; at least one must serve each pass.
void expect_served(Case spec) {
  for (const DType dtype : kStorage) {
    spec.dtype = dtype;
    const CaseReport report = run_case(spec, test_seed());
    EXPECT_TRUE(report.ok()) << describe(spec) << "\n" << report.text();
    for (const PassReport& pass : report.passes) {
      EXPECT_GT(pass.num_served, 0) << pass.pass << " of " << describe(spec) << " is refused";
    }
  }
}

Case medium() {
  return {.seqlen_q = 113, .seqlen_k = 203, .num_heads_q = 6, .num_heads_kv = 2, .head_dim = 64};
}

// Which keys each query sees, read from the result of uniform attention over unit vectors:
// "11110/11111".
std::string visible_keys(std::int64_t seqlen_q, std::int64_t seqlen_k,
                         const AttentionOptions& options) {
  const Tensor q = Tensor::zeros({1, seqlen_q, 1, 8}, DType::float32);
  const Tensor k = Tensor::zeros({1, seqlen_k, 1, 8}, DType::float32);
  const Tensor v = Tensor::zeros({1, seqlen_k, 1, seqlen_k}, DType::float32);
  for (std::int64_t j = 0; j < seqlen_k; ++j)
    v.as<float>()[j * seqlen_k + j] = 1.0f;
  const AttentionResult result = flash_attn_func(q, k, v, options);
  std::string text;
  for (std::int64_t i = 0; i < seqlen_q; ++i) {
    if (i > 0) text += '/';
    for (std::int64_t j = 0; j < seqlen_k; ++j) {
      text += result.out.as<float>()[i * seqlen_k + j] > 0 ? '1' : '0';
    }
  }
  return text;
}

TEST(B2, causal_is_aligned_to_the_last_key) {
  EXPECT_EQ(visible_keys(2, 5, {.causal = true}), "11110/11111");
  EXPECT_EQ(visible_keys(5, 2, {.causal = true}), "00/00/00/10/11");
  EXPECT_EQ(visible_keys(2, 5, {.causal = true, .align = MaskAlign::top_left}), "10000/11000");
}

TEST(B2, windows_include_both_ends) {
  EXPECT_EQ(visible_keys(3, 5, {.window_left = 1, .window_right = 1}), "01110/00111/00011");
  EXPECT_EQ(visible_keys(3, 3, {.window_left = 0, .window_right = 0}), "100/010/001");
  EXPECT_EQ(visible_keys(3, 3, {.window_left = 1}), "111/111/011");
  EXPECT_EQ(visible_keys(3, 3, {.window_right = 1}), "110/111/111");
  EXPECT_EQ(visible_keys(3, 3, {.causal = true, .window_right = 2}), "100/110/111");
  EXPECT_EQ(visible_keys(4, 2, {.window_left = 0, .align = MaskAlign::top_left}), "11/01/00/00");
}

TEST(B2, lse_is_the_log_of_the_sum) {
  // Scores 0 over n keys: lse = log n; with slopes, log sum exp(-slope |i + shift - j|).
  const Tensor q = Tensor::zeros({1, 2, 1, 4}, DType::float32);
  const Tensor k = Tensor::zeros({1, 3, 1, 4}, DType::float32);
  const AttentionResult plain = flash_attn_func(q, k, k, {.causal = true});
  EXPECT_NEAR(plain.lse.as<float>()[0], std::log(2.0), 1e-6);
  EXPECT_NEAR(plain.lse.as<float>()[1], std::log(3.0), 1e-6);
  const Tensor slopes = Tensor::from<float>({0.5f}, {1});
  const AttentionResult alibi = flash_attn_func(q, k, k, {.causal = true, .alibi_slopes = slopes});
  EXPECT_NEAR(alibi.lse.as<float>()[0], std::log(1 + std::exp(-0.5)), 1e-6);
  EXPECT_NEAR(alibi.lse.as<float>()[1], std::log(1 + std::exp(-0.5) + std::exp(-1.0)), 1e-6);
  const Tensor sinks = Tensor::from<float>({1.0f}, {1});
  const AttentionResult sink = flash_attn_func(q, k, k, {.causal = true, .sinks = sinks});
  EXPECT_NEAR(sink.lse.as<float>()[0], std::log(2 + std::exp(1.0)), 1e-6);
}

TEST(B2, rows_that_see_nothing) {
  const Tensor q = Tensor::zeros({1, 3, 2, 4}, DType::float32);
  const Tensor k = Tensor::zeros({1, 1, 2, 4}, DType::float32);
  const Tensor sinks = Tensor::from<float>({0.75f, -2.0f}, {2});
  const Tensor v = Tensor::from<float>({1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 2, 4});
  for (const bool with_sinks : {false, true}) {
    AttentionOptions options{.causal = true};
    if (with_sinks) options.sinks = sinks;
    const AttentionResult result = flash_attn_func(q, k, v, options);
    for (std::int64_t i = 0; i < 2; ++i) {
      for (std::int64_t head = 0; head < 2; ++head) {
        for (std::int64_t d = 0; d < 4; ++d) {
          EXPECT_EQ(result.out.as<float>()[(i * 2 + head) * 4 + d], 0.0f);
        }
        const float expected =
            with_sinks ? sinks.as<float>()[head] : -std::numeric_limits<float>::infinity();
        EXPECT_FLOAT_EQ(result.lse.as<float>()[head * 3 + i], expected);
      }
    }
  }
}

TEST(C1, forward_and_backward_in_three_types_with_dropout_and_lse) {
  Case c = medium();
  c.dropout = 0.2f;
  c.dlse = true;
  expect_served(c);
}

TEST(B2, softcap_with_dropout) {
  Case c = medium();
  c.softcap = 15.0f;
  c.dropout = 0.17f;
  expect_served(c);
}

TEST(B2, alibi_with_window) {
  Case c = medium();
  c.alibi = true;
  c.window_left = 50;
  c.window_right = 20;
  expect_served(c);
}

TEST(B2, softmax_scale) {
  Case c = medium();
  c.softmax_scale = 0.05f;
  expect_served(c);
}

TEST(B2, everything_at_once) {
  Case c = medium();
  c.causal = c.alibi = c.sinks = c.dlse = c.strided = true;
  c.window_left = 150;
  c.softcap = 10.0f;
  c.dropout = 0.1f;
  c.bias = {true, kBatch | kRow | kColumn};
  c.mask = {true, kHead | kColumn};
  expect_served(c);
  c.layout = Layout::ragged;
  c.batch = 3;
  c.lengths_q = c.lengths_k = Lengths::random;
  c.seqused = true;
  expect_served(c);
}

TEST(B3, shared_key_heads) {
  for (const std::int64_t num_heads_kv : {1, 2, 3, 6}) {
    Case c = medium();
    c.num_heads_kv = num_heads_kv;
    c.causal = true;
    expect_served(c);
  }
}

TEST(B3, head_dims) {
  for (const std::int64_t head_dim : {1, 3, 8, 31, 40, 59, 96, 111, 128, 160, 192, 224, 255, 256}) {
    Case c = medium();
    c.seqlen_q = 33;
    c.seqlen_k = 70;
    c.head_dim = head_dim;
    expect_served(c);
    c.head_dim_v = 257 - head_dim;
    expect_served(c);
  }
}

TEST(B3, arbitrary_strides) {
  Case c = medium();
  c.strided = true;
  c.head_dim = 41;
  expect_served(c);
}

// Heads before rows in memory: [batch, heads, seqlen, dim] seen as [batch, seqlen, heads, dim].
TEST(B3, transposed_layout) {
  const Instance instance(medium(), test_seed());
  AttentionCall call = instance.call;
  std::vector<Tensor> memory;
  for (TensorView* tensor : {&call.q, &call.k, &call.v}) {
    memory.push_back(clone(tensor->transpose(1, 2)));
    *tensor = memory.back().view().transpose(1, 2);
  }
  EXPECT_TRUE(same_bits(forward(call).out, forward(instance.call).out));
}

TEST(B1, packed_functions_equal_the_plain_ones) {
  Memory memory(test_seed());
  const TensorView qkv = memory.normal({2, 37, 3, 4, 32}, DType::float32, true);
  const auto part = [&](std::int64_t n) { return qkv.select(2, n); };
  const AttentionOptions options{.causal = true};
  const AttentionResult expected = flash_attn_func(part(0), part(1), part(2), options);
  EXPECT_TRUE(same_bits(flash_attn_qkvpacked_func(qkv, options).out, expected.out));
  EXPECT_TRUE(
      same_bits(flash_attn_kvpacked_func(part(0), qkv.slice(2, 1, 3), options).out, expected.out));

  const TensorView rows = memory.normal({50, 3, 4, 32}, DType::float32, true);
  const auto flat = [&](std::int64_t n) { return rows.select(1, n); };
  const TensorView ends = memory.indices({0, 13, 13, 50}, {4});
  const Sequences sequences{
      .cu_seqlens_q = ends, .cu_seqlens_k = ends, .max_seqlen_q = 37, .max_seqlen_k = 37};
  const AttentionResult ragged =
      flash_attn_varlen_func(flat(0), flat(1), flat(2), sequences, options);
  EXPECT_TRUE(
      same_bits(flash_attn_varlen_qkvpacked_func(rows, sequences, options).out, ragged.out));
  EXPECT_TRUE(same_bits(
      flash_attn_varlen_kvpacked_func(flat(0), rows.slice(1, 1, 3), sequences, options).out,
      ragged.out));
}

TEST(B4, append_rotate_leftpad_batch_idx_and_splits_together) {
  for (const bool interleaved : {false, true}) {
    for (const std::int64_t rotary_dim : {16, 64}) {
      Case c{.layout = Layout::cache,
             .batch = 3,
             .seqlen_q = 4,
             .seqlen_k = 339,
             .num_heads_q = 6,
             .num_heads_kv = 2,
             .head_dim = 64,
             .lengths_k = Lengths::random,
             .causal = true,
             .seqlen_new = 4,
             .rotary_dim = rotary_dim,
             .rotary_interleaved = interleaved,
             .leftpad = true,
             .batch_idx = true,
             .num_splits = 3,
             .strided = true};
      expect_served(c);
      c.positions = true;
      expect_served(c);
      c.causal = false;  // queries then share one position
      c.positions = false;
      expect_served(c);
    }
  }
}

TEST(B4, options_of_scores_on_a_cache) {
  expect_served({.layout = Layout::cache,
                 .batch = 3,
                 .seqlen_q = 3,
                 .seqlen_k = 339,
                 .num_heads_q = 6,
                 .num_heads_kv = 3,
                 .head_dim = 80,
                 .lengths_k = Lengths::random,
                 .window_left = 100,
                 .window_right = 0,
                 .softcap = 12.0f,
                 .alibi = true,
                 .bias = {true, kHead | kColumn},
                 .mask = {true, kBatch | kColumn},
                 .sinks = true});
}

TEST(B5, pages_of_any_size_with_append_and_left_padding) {
  for (const std::int64_t page_size : {1, 16, 48, 256}) {
    expect_served({.layout = Layout::cache_paged,
                   .batch = 3,
                   .seqlen_q = 2,
                   .seqlen_k = 300,
                   .num_heads_q = 4,
                   .num_heads_kv = 1,
                   .head_dim = 64,
                   .lengths_k = Lengths::random,
                   .causal = true,
                   .page_size = page_size,
                   .seqlen_new = 2,
                   .rotary_dim = 64,
                   .leftpad = true});
  }
}

TEST(B5, paged_keys_in_a_ragged_batch) {
  for (const std::int64_t page_size : {1, 16, 48, 256}) {
    Case c = medium();
    c.layout = Layout::ragged_paged;
    c.page_size = page_size;
    c.lengths_q = c.lengths_k = Lengths::random;
    c.causal = true;
    expect_served(c);
  }
}

TEST(B6, zero_length_sequences_and_gaps) {
  Case c = medium();
  c.layout = Layout::ragged;
  c.batch = 6;
  c.lengths_q = c.lengths_k = Lengths::some_zero;
  c.seqused = true;
  c.sinks = true;
  expect_served(c);
}

TEST(B7, bias_and_mask_of_every_pattern) {
  for (unsigned varies = 0; varies < 16; ++varies) {
    Case c = medium();
    c.seqlen_q = 33;
    c.seqlen_k = 70;
    c.bias = {true, varies};
    c.mask = {true, 15 - varies};
    c.narrow_extras = varies % 2 == 0;
    expect_served(c);
  }
}

// A bias of -inf hides a key exactly as a mask does.
TEST(B7, a_bias_of_minus_infinity_hides) {
  Instance instance({.seqlen_q = 5,
                     .seqlen_k = 70,
                     .num_heads_q = 2,
                     .num_heads_kv = 2,
                     .mask = {true, kRow | kColumn}},
                    test_seed());
  AttentionCall biased = instance.call;
  const Tensor bias = Tensor::zeros(biased.options.mask.shape, DType::float32);
  for (std::int64_t n = 0; n < bias.numel(); ++n) {
    const bool hides = !element<bool>(biased.options.mask, n) || n < 70;  // row 0 sees nothing
    bias.as<float>()[n] = hides ? -std::numeric_limits<float>::infinity() : 0.0f;
    element<bool>(instance.call.options.mask, n) = !hides;
  }
  biased.options.mask = {};
  biased.options.bias = bias;
  const AttentionResult expected = forward(instance.call);
  const AttentionResult result = forward(biased);
  EXPECT_TRUE(compare("out", result.out, expected.out, 1e-6).ok);
  EXPECT_TRUE(compare("lse", result.lse, expected.lse, 1e-5).ok);
  const AttentionGradients gradients =
      flash_attn_backward(instance.dout, biased.q, biased.k, biased.v, result, biased.options);
  EXPECT_TRUE(std::isfinite(max_abs(gradients.dq)));
  const Comparison comparison = compare("dq", gradients.dq, backward(instance, expected).dq, 1e-5);
  EXPECT_TRUE(comparison.ok) << comparison.message;
}

// Scores of several hundred: exp of them overflows unless the largest is taken out first.
TEST(B2, huge_scores_do_not_overflow) {
  Case c = medium();
  c.softmax_scale = 20.0f;
  c.seqlen_q = c.seqlen_k = 64;
  expect_served(c);
}

}  // namespace
}  // namespace flashmha::tests
