// The thirty points that a replacement of the framework's wrapper must get right, one test each.
// First half: masks, lengths, packing, windows, scores. The other half is in checklist2_test.cpp.
#include <fmt/format.h>

#include "tests/nn/layer_cases.h"

namespace flashmha::tests {
namespace {

using Mixin = FlashAttentionMixin;

constexpr double kTight = 2e-5;

// q, k, v of one size, float32: 6 query heads over 2 key heads.
struct Qkv {
  Tensor q, k, v;
  Qkv(Random& random, std::int64_t batch, std::int64_t seqlen_q, std::int64_t seqlen_k,
      std::int64_t head_dim_v = 16)
      : q(random.normal({batch, seqlen_q, 6, 16})),
        k(random.normal({batch, seqlen_k, 2, 16})),
        v(random.normal({batch, seqlen_k, 2, head_dim_v})) {}
};

Mixin::Options causal_options() {
  Mixin::Options options;
  options.attention.causal = true;
  return options;
}

// Every real query of a padded call gets what its sequence gets alone; padded queries get 0.
void expect_rows_alone(const Qkv& x, const TensorView& mask, const Mixin::Options& options) {
  const Tensor out = clone(Mixin::forward(x.q, x.k, x.v, mask, options).out());
  const std::int64_t seqlen_q = x.q.size(1);
  const std::int64_t offset = mask.size(1) - seqlen_q;
  for (std::int64_t b = 0; b < x.q.size(0); ++b) {
    const std::vector<std::int64_t> keys = real_columns(mask, b);
    std::vector<std::int64_t> queries;
    for (std::int64_t i = 0; i < seqlen_q; ++i) {
      const bool real = std::count(keys.begin(), keys.end(), offset + i) > 0;
      if (real || (seqlen_q == 1 && mask.size(1) > 1)) {
        queries.push_back(i);
      } else {
        EXPECT_TRUE(all_zero(out.view().select(0, b).select(0, i))) << "padded row " << i;
      }
    }
    if (queries.empty()) continue;
    if (keys.empty()) {
      EXPECT_TRUE(all_zero(out.view().select(0, b))) << "nothing to see in row " << b;
      continue;
    }
    const AttentionResult alone = flash_attn_func(pick(x.q, b, queries), pick(x.k, b, keys),
                                                  pick(x.v, b, keys), options.attention);
    expect_near(pick(out, b, queries), alone.out, kTight, fmt::format("row {}", b));
  }
}

TEST(Checklist, P01_AllOnesMaskEqualsNoMask) {
  Random random;
  const Qkv x(random, 2, 9, 9);
  const Mixin::Result with =
      Mixin::forward(x.q, x.k, x.v, mask_of({"111111111", "111111111"}), causal_options());
  const Mixin::Result without = Mixin::forward(x.q, x.k, x.v, {}, causal_options());
  EXPECT_FALSE(with.unpadded.has_value());
  expect_same_bits(with.out(), without.out(), "out");
}

TEST(Checklist, P02_LeftRightMiddlePaddingEqualSingleRuns) {
  Random random;
  for (const bool causal : {true, false}) {
    Mixin::Options options;
    options.attention.causal = causal;
    const Qkv x(random, 4, 8, 8);
    expect_rows_alone(x, mask_of({"00011111", "11111000", "10110101", "11111111"}), options);
  }
}

TEST(Checklist, P03_AllZeroRowGivesZero) {
  Random random;
  const Qkv square(random, 3, 5, 5);
  expect_rows_alone(square, mask_of({"00000", "01111", "00000"}), causal_options());
  const Qkv single(random, 3, 1, 5);  // the shape that broke FlashAttention-2 (its issue 1537)
  expect_rows_alone(single, mask_of({"00000", "01111", "11111"}), causal_options());
  const Qkv none(random, 2, 5, 5);  // not a single real token in the batch
  expect_rows_alone(none, mask_of({"00000", "00000"}), causal_options());
}

TEST(Checklist, P04_AllQueryLengthsAlignPerSequence) {
  Random random;
  for (const std::int64_t seqlen_q : {9, 1, 4, 8}) {
    SCOPED_TRACE(seqlen_q);
    const Qkv x(random, 3, seqlen_q, 9);
    expect_rows_alone(x, mask_of({"000011111", "111111111", "000000011"}), causal_options());
  }
}

TEST(Checklist, P05_RightPaddingWithACache) {
  // Prompts padded on the right leave holes in the cache; the masks of later calls say where.
  Random random;
  LayerPair layers(small_config(), random);
  const Tensor x = random.normal({2, 8, 24});
  const Tensor mask = mask_of({"11100111", "11111111"});
  for (const bool paged : {false, true}) {
    std::unique_ptr<nn::KVCache> cache = std::make_unique<nn::DynamicKVCache>();
    if (paged) cache = std::make_unique<nn::PagedKVCache>(2);
    std::vector<Tensor> outs;
    for (const auto& [begin, end] : {std::pair<int, int>{0, 5}, {5, 7}, {7, 8}}) {
      const Tensor chunk = clone(x.view().slice(1, begin, end));
      nn::AttentionInputs inputs;
      inputs.hidden_states = chunk;
      inputs.attention_mask = mask.view().slice(1, 0, end);
      inputs.cache = cache.get();
      outs.push_back(layers.flash->forward(inputs));
    }
    const Tensor row = pick(x, 0, {0, 1, 2, 5, 6, 7});
    nn::AttentionInputs alone;
    alone.hidden_states = row;
    const Tensor expected = layers.flash->forward(alone);
    expect_near(pick(outs[0], 0, {0, 1, 2}), expected.view().slice(1, 0, 3), kTight, "prompt");
    expect_near(pick(outs[1], 0, {0, 1}), expected.view().slice(1, 3, 5), kTight, "chunk");
    expect_near(pick(outs[2], 0, {0}), expected.view().slice(1, 5, 6), kTight, "token");
  }
}

TEST(Checklist, P06_MaskAndKeysOfDifferentLength) {
  Random random;
  const Qkv x(random, 2, 3, 9);
  const Tensor mask = mask_of({"00111", "11111"});  // a static cache: 4 unfilled slots
  Qkv cut(random, 2, 3, 9);
  copy(x.q, cut.q);
  cut.k = clone(x.k.view().slice(1, 0, 5));
  cut.v = clone(x.v.view().slice(1, 0, 5));
  expect_near(Mixin::forward(x.q, x.k, x.v, mask, causal_options()).out(),
              Mixin::forward(cut.q, cut.k, cut.v, mask, causal_options()).out(), 0.0, "K longer");
  const Tensor longer = mask_of({"110000011111111", "101010111111111"});  // a sliding cache
  const Tensor last = clone(longer.view().slice(1, 6, 15));
  expect_near(Mixin::forward(x.q, x.k, x.v, longer, causal_options()).out(),
              Mixin::forward(x.q, x.k, x.v, last, causal_options()).out(), 0.0, "mask longer");

  const Mixin::Result result = Mixin::forward(x.q, x.k, x.v, mask, causal_options());
  const Mixin::Gradients gradients = Mixin::backward(x.q, x.q, x.k, x.v, result, causal_options());
  EXPECT_EQ(to_string(gradients.dk.shape()), to_string(x.k.shape()));
  EXPECT_TRUE(all_zero(gradients.dk.view().slice(1, 5, 9))) << "keys that are cut off get 0";
  const Tensor ones = mask_of({"11111", "11111"});
  const Mixin::Result dense = Mixin::forward(x.q, x.k, x.v, ones, causal_options());
  const Mixin::Gradients dense_gradients =
      Mixin::backward(x.q, x.q, x.k, x.v, dense, causal_options());
  EXPECT_TRUE(all_zero(dense_gradients.dv.view().slice(1, 5, 9)));
}

TEST(Checklist, P07_UnfilledSlotsNeverTakePart) {
  Random random;
  LayerPair layers(small_config(), random);
  const Tensor x = random.normal({2, 6, 24});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  const Tensor expected = layers.flash->forward(inputs);
  for (const bool masked : {false, true}) {
    nn::StaticKVCache cache(50);
    const Tensor garbage = poisoned({2, 50, 2, 8});
    cache.append(garbage, garbage);  // every slot holds NaN
    cache.crop(0);
    const Tensor mask = mask_of({"111111", "111111"});
    inputs.cache = &cache;
    if (masked) inputs.attention_mask = mask;
    expect_near(layers.flash->forward(inputs), expected, kTight, "out");
  }
}

TEST(Checklist, P08_PackedAndMaskConflict) {
  Random random;
  LayerPair layers(small_config(), random);
  const Tensor x = random.normal({1, 4, 24});
  const Tensor mask = mask_of({"0111"});
  const PackedSequences packed = packed_sequences(int32_matrix({{0, 1, 0, 1}}));
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  inputs.attention_mask = mask;
  inputs.packed = &packed;
  expect_error([&] { layers.flash->forward(inputs); }, {"packed sequences exclude a mask"});
  const Qkv qkv(random, 1, 4, 4);
  Mixin::Options options;
  options.packed = &packed;
  expect_error([&] { Mixin::forward(qkv.q, qkv.k, qkv.v, mask, options); }, {"exclude each other"});
}

TEST(Checklist, P09_PackingFromPositionIds) {
  Random random;
  LayerPair layers(small_config(), random);
  const Tensor x = random.normal({1, 9, 24});
  const Tensor ids = int32_matrix({{2, 3, 4, 2, 3, 4, 5, 2, 3}});  // the minimum is not 0
  const PackedSequences packed = packed_sequences(ids);
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  inputs.packed = &packed;
  inputs.position_ids = ids;
  const Tensor out = layers.flash->forward(inputs);
  for (const auto& [begin, end] : {std::pair<int, int>{0, 3}, {3, 7}, {7, 9}}) {
    const Tensor part = clone(x.view().slice(1, begin, end));
    const Tensor part_ids = clone(ids.view().slice(1, begin, end));
    nn::AttentionInputs alone;
    alone.hidden_states = part;
    alone.position_ids = part_ids;
    expect_near(out.view().slice(1, begin, end), layers.flash->forward(alone), kTight, "sequence");
  }
  expect_error([] { packed_sequences(Tensor::zeros({3, 1, 9}, DType::int32)); }, {"several axes"});
}

TEST(Checklist, P10_WindowLengthCountsItself) {
  Random random;
  const Qkv x(random, 1, 12, 12);
  for (const bool causal : {true, false}) {
    const Window window = window_of_length(4, causal);
    AttentionOptions options{
        .causal = causal, .window_left = window.left, .window_right = window.right};
    Tensor mask = Tensor::zeros({1, 1, 12, 12}, DType::boolean);
    for (std::int64_t i = 0; i < 12; ++i) {
      int seen = 0;
      for (std::int64_t j = 0; j < 12; ++j) {
        const bool visible = causal ? j <= i && i - j < 4 : std::abs(i - j) < 4;
        mask.as<bool>()[i * 12 + j] = visible;
        seen += visible;
      }
      if (causal && i >= 3) {
        EXPECT_EQ(seen, 4);
      }
    }
    const AttentionResult windowed = flash_attn_func(x.q, x.k, x.v, options);
    const AttentionResult masked = flash_attn_func(x.q, x.k, x.v, {.mask = mask});
    expect_near(windowed.out, masked.out, kTight, "window");
  }
  const Window wide = window_of_length(12, true);
  const AttentionResult all = flash_attn_func(
      x.q, x.k, x.v, {.causal = true, .window_left = wide.left, .window_right = wide.right});
  expect_near(all.out, flash_attn_func(x.q, x.k, x.v, {.causal = true}).out, 1e-6, "W = keys");
}

TEST(Checklist, P11_SlidingCacheAndLongPrefill) {
  Random random;
  nn::AttentionConfig config = small_config();
  config.sliding_window = 4;
  LayerPair layers(config, random);
  const Tensor x = random.normal({2, 23, 24});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  const Tensor expected = layers.flash->forward(inputs);
  nn::SlidingKVCache cache(4);
  std::int64_t done = 0;
  for (const std::int64_t count : {11, 1, 1, 7, 1, 2}) {
    const Tensor chunk = clone(x.view().slice(1, done, done + count));
    nn::AttentionInputs step;
    step.hidden_states = chunk;
    step.cache = &cache;
    expect_near(layers.flash->forward(step), expected.view().slice(1, done, done + count), kTight,
                fmt::format("from {}", done));
    done += count;
  }
}

TEST(Checklist, P12_SoftcapBeforeMaskAndAnyScale) {
  Random random;
  const Qkv x(random, 1, 3, 3);
  const AttentionOptions options{.softmax_scale = 1.7f, .causal = true, .softcap = 2.0f};
  const AttentionResult result = flash_attn_func(x.q, x.k, x.v, options);
  const Values q = values_of(x.q), k = values_of(x.k), v = values_of(x.v);
  Values expected;
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t h = 0; h < 6; ++h) {
      double sum = 0.0;
      Values row(16);
      for (std::size_t j = 0; j <= i; ++j) {  // masked keys are not capped into -2: they are gone
        double score = 0.0;
        for (std::size_t d = 0; d < 16; ++d) {
          score += q[(i * 6 + h) * 16 + d] * k[(j * 2 + h / 3) * 16 + d];
        }
        const double weight = std::exp(2.0 * std::tanh(1.7 * score / 2.0));
        sum += weight;
        for (std::size_t d = 0; d < 16; ++d)
          row[d] += weight * v[(j * 2 + h / 3) * 16 + d];
      }
      for (const double value : row)
        expected.push_back(value / sum);
    }
  }
  expect_near(result.out, expected, kTight, "out");
}

TEST(Checklist, P13_SinkInDenominatorLseAndGradient) {
  Random random;
  const Qkv x(random, 2, 5, 7);
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const Tensor sinks = random.normal({6}, dtype);
    const Tensor q = cast(x.q, dtype), k = cast(x.k, dtype), v = cast(x.v, dtype);
    const AttentionOptions without{.causal = true};
    const AttentionOptions with{.causal = true, .sinks = sinks};
    const AttentionResult plain = flash_attn_func(q, k, v, without);
    const AttentionResult sunk = flash_attn_func(q, k, v, with);
    const Values lse = values_of(plain.lse), s = values_of(sinks), out = values_of(plain.out);
    Values expected_lse, expected_out(out.size());
    for (std::size_t at = 0; at < lse.size(); ++at) {  // [batch, head, row]
      const std::size_t b = at / 30, h = at / 5 % 6, i = at % 5;
      expected_lse.push_back(std::log(std::exp(lse[at]) + std::exp(s[h])));
      const double share = std::exp(lse[at] - expected_lse.back());
      for (std::size_t d = 0; d < 16; ++d) {
        const std::size_t to = ((b * 5 + i) * 6 + h) * 16 + d;
        expected_out[to] = out[to] * share;
      }
    }
    const double tolerance = dtype == DType::float32 ? kTight : 1.0 / 64;
    expect_near(sunk.lse, expected_lse, tolerance, "lse");
    expect_near(sunk.out, expected_out, tolerance, "out");
    const Tensor dout = random.normal(q.shape(), dtype);
    const AttentionGradients gradients = flash_attn_backward(dout, q, k, v, sunk, with);
    Values expected(6);  // -share of the sink * sum(dout * out)
    const Values d = values_of(dout), o = values_of(sunk.out);
    for (std::size_t at = 0; at < lse.size(); ++at) {
      const std::size_t b = at / 30, h = at / 5 % 6, i = at % 5;
      double product = 0.0;
      for (std::size_t e = 0; e < 16; ++e) {
        const std::size_t from = ((b * 5 + i) * 6 + h) * 16 + e;
        product += d[from] * o[from];
      }
      expected[h] -= std::exp(s[h] - expected_lse[at]) * product;
    }
    expect_near(gradients.dsinks, expected, dtype == DType::float32 ? 1e-4 : 0.05, "dsinks");
  }
}

TEST(Checklist, P14_CausalIsDecidedPerCall) {
  Random random;
  LayerPair layers(small_config(), random);
  const Tensor x = random.normal({2, 6, 24}), encoder = random.normal({2, 4, 24});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  const Tensor causal = layers.flash->forward(inputs);
  inputs.causal = false;
  const Tensor full = layers.flash->forward(inputs);
  expect_near(causal.view().slice(1, 5, 6), full.view().slice(1, 5, 6), kTight, "last token");
  EXPECT_GT(std::abs(values_of(causal)[0] - values_of(full)[0]), 1e-4) << "the first differs";

  inputs.causal.reset();
  inputs.encoder_states = encoder;  // cross-attention is not causal: order must not matter
  const Tensor cross = layers.flash->forward(inputs);
  const Tensor reversed = clone(encoder);
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t i = 0; i < 4; ++i) {
      copy(encoder.view().select(0, b).select(0, i), reversed.view().select(0, b).select(0, 3 - i));
    }
  }
  inputs.encoder_states = reversed;
  expect_near(layers.flash->forward(inputs), cross, kTight, "reversed encoder");

  const Qkv one(random, 2, 1, 9);
  expect_near(flash_attn_func(one.q, one.k, one.v, {.causal = true}).out,
              flash_attn_func(one.q, one.k, one.v).out, 1e-6, "one query");
}

TEST(Checklist, P15_GroupedHeadsWithoutCopies) {
  Random random;
  const Qkv x(random, 2, 5, 5);
  Tensor k = Tensor::empty({2, 5, 6, 16}, DType::float32);
  Tensor v = Tensor::empty({2, 5, 6, 16}, DType::float32);
  for (std::int64_t h = 0; h < 6; ++h) {  // query heads 0-2 use key head 0, 3-5 key head 1
    copy(x.k.view().select(2, h / 3), k.view().select(2, h));
    copy(x.v.view().select(2, h / 3), v.view().select(2, h));
  }
  const std::size_t before = memory_stats().current_bytes;
  reset_peak_memory();
  const AttentionResult grouped = flash_attn_func(x.q, x.k, x.v, {.causal = true});
  EXPECT_LT(memory_stats().peak_bytes - before, std::size_t{1} << 23) << "and no large workspace";
  expect_near(grouped.out, flash_attn_func(x.q, k, v, {.causal = true}).out, kTight, "out");
}

}  // namespace
}  // namespace flashmha::tests
