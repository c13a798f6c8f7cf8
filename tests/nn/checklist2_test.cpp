// The second half of the checklist: rotary, norms, dtypes, dropout, errors, caches, gradients.
#include "tests/environment.h"
#include "tests/nn/layer_cases.h"

namespace flashmha::tests {
namespace {

using test::EnvironmentVariable;
using Mixin = FlashAttentionMixin;

constexpr double kTight = 2e-5;

TEST(Checklist, P16_RotaryHalvesPartialAndScaled) {
  Random random;
  nn::RotaryConfig config;
  config.head_dim = 8;
  config.partial_rotary_factor = 0.5;
  config.scaling = nn::RotaryScaling::yarn;
  config.factor = 4.0;
  config.max_position_embeddings = 32;
  nn::RotaryEmbedding rotary(config);
  const ops::RotaryTables tables = rotary.tables(16);
  EXPECT_EQ(tables.cos.dtype, DType::float32);
  const double scaling = 0.1 * std::log(4.0) + 1.0;
  EXPECT_NEAR(tables.cos.as<float>()[0], scaling, 1e-6) << "cos(0) carries the attention factor";
  const Tensor x = random.normal({1, 16, 3, 8}, DType::bfloat16);
  Tensor positions = Tensor::empty({1, 16}, DType::int32);
  for (int i = 0; i < 16; ++i)
    positions.as<std::int32_t>()[i] = i;
  const Tensor y = poisoned(x.shape(), DType::bfloat16);
  ops::rotary(x, tables, positions, y);
  const Values v = values_of(x), c = values_of(tables.cos), s = values_of(tables.sin);
  Values expected = v;
  for (std::size_t row = 0; row < 48; ++row) {
    for (std::size_t i = 0; i < 2; ++i) {  // halves of the first four elements: (0, 2), (1, 3)
      const std::size_t at = row / 3 * 2 + i;
      expected[row * 8 + i] = v[row * 8 + i] * c[at] - v[row * 8 + i + 2] * s[at];
      expected[row * 8 + i + 2] = v[row * 8 + i + 2] * c[at] + v[row * 8 + i] * s[at];
    }
  }
  expect_near(y, expected, 1.0 / 256, "one rounding");
  expect_same_bits(y.view().slice(3, 4, 8), x.view().slice(3, 4, 8), "the rest passes through");
}

TEST(Checklist, P17_NormBeforeRotaryBeforeCache) {
  Random random;
  nn::AttentionConfig config = small_config();
  config.qk_norm = true;
  LayerPair layers(config, random);
  const Tensor x = random.normal({1, 6, 24});
  nn::DynamicKVCache cache;
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  inputs.cache = &cache;
  nn::AttentionSaved saved;
  layers.flash->forward(inputs, &saved);
  const Tensor projected = layers.flash->k_proj.forward(x);
  const Tensor expected = layers.flash->k_norm.forward(projected.view().reshape({1, 6, 2, 8}));
  ops::rotary(expected, layers.flash->rotary->tables(6), int32_matrix({{0, 1, 2, 3, 4, 5}}),
              expected);
  const Tensor next = random.normal({1, 1, 2, 8});
  const nn::OrderedKeys held = nn::in_order(cache.append(next, next));
  expect_near(held.k.slice(1, 0, 6), expected, kTight, "cached keys");
  expect_same_bits(held.v.slice(1, 0, 6).reshape({1, 6, 16}), layers.flash->v_proj.forward(x),
                   "values are never rotated");
}

TEST(Checklist, P18_Float32IsARealType) {
  Random random;
  LayerPair wide(small_config(), random);
  const Tensor x = random.normal({2, 40, 24});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  const Tensor flash = wide.flash->forward(inputs);
  EXPECT_EQ(flash.dtype(), DType::float32);
  expect_near(flash, wide.plain->forward(inputs), kTight, "not computed in 16 bits");
  const Tensor half = cast(x, DType::float16);
  inputs.hidden_states = half;  // never cast behind the caller's back
  expect_error([&] { wide.flash->forward(inputs); }, {"must be float32", "float16"});
}

TEST(Checklist, P19_DropoutInTrainingOnly) {
  Random random;
  nn::AttentionConfig config = small_config();
  LayerPair still(config, random);
  config.dropout = 0.5f;
  config.layer_index = 3;
  LayerPair dropping(config, random);
  copy_parameters(*still.flash, *dropping.flash);
  copy_parameters(*still.flash, *dropping.plain);
  const Tensor x = random.normal({2, 12, 24});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  expect_same_bits(dropping.flash->forward(inputs), still.flash->forward(inputs), "evaluation");
  inputs.training = true;
  inputs.dropout_seed = 9;
  const Tensor dropped = dropping.flash->forward(inputs);
  expect_near(dropped, dropping.plain->forward(inputs), kTight, "plain drops the same elements");
  expect_same_bits(dropping.flash->forward(inputs), dropped, "the same call");
  const auto differs = [&](const TensorView& other) {
    return values_of(other) != values_of(dropped);
  };
  inputs.dropout_offset = 1;
  EXPECT_TRUE(differs(dropping.flash->forward(inputs))) << "another step";
  inputs.dropout_offset = 0;
  dropping.flash->config.layer_index = 4;
  EXPECT_TRUE(differs(dropping.flash->forward(inputs))) << "another layer";
}

TEST(Checklist, P20_ProbabilitiesAreRealOrRefused) {
  Random random;
  LayerPair layers(small_config(), random);
  const Tensor x = random.normal({1, 5, 24});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  inputs.return_probabilities = true;
  nn::AttentionSaved saved;
  expect_error([&] { layers.flash->forward(inputs, &saved); },
               {"[FlashMultiHeadAttention]", "return_probabilities", "MultiHeadAttention does"});
  expect_error([&] { layers.plain->forward(inputs); }, {"needs an AttentionSaved"});
  layers.plain->forward(inputs, &saved);
  const Values p = values_of(saved.plain.probabilities);
  ASSERT_EQ(p.size(), 4u * 5u * 5u);
  for (std::size_t row = 0; row < 20; ++row) {
    double sum = 0.0;
    for (std::size_t j = 0; j < 5; ++j) {
      sum += p[row * 5 + j];
      if (j > row % 5) {
        EXPECT_EQ(p[row * 5 + j], 0.0);
      }
    }
    EXPECT_NEAR(sum, 1.0, 1e-5);
  }
}

TEST(Checklist, P21_UnsupportedOptionsThrow) {
  Random random;
  const Tensor q = random.normal({1, 4, 2, 8});
  const Tensor mask = mask_of({"0111"});
  const Tensor bias = random.normal({1, 2, 4, 4});
  Mixin::Options biased;
  biased.attention.bias = bias;
  expect_error([&] { Mixin::forward(q, q, q, mask, biased); },
               {"padding mask cannot be combined", "flash_attn_func"});
  const Tensor lengths = Tensor::from({std::int32_t{4}}, {1});
  KVCacheView cache;
  cache.k = q;
  cache.v = q;
  cache.cache_seqlens = lengths;
  AttentionOptions dropout;
  dropout.dropout.p = 0.5f;
  expect_error([&] { flash_attn_with_kvcache(q, cache, {}, dropout); },
               {"[flash_attn_with_kvcache]", "dropout"});
  expect_error([&] { nn::plain_attention(q, q, q, biased.attention); },
               {"[plain_attention]", "bias"});
}

TEST(Checklist, P22_InputsAreNotTouched) {
  Random random;
  const Tensor q = random.normal({3, 1, 4, 8}), k = random.normal({3, 5, 2, 8});
  const Tensor v = random.normal({3, 5, 2, 8});
  const Tensor before[] = {clone(q), clone(k), clone(v)};
  const Tensor mask = mask_of({"00111", "11111", "01111"});
  Mixin::Options options;
  options.attention.causal = true;
  const Mixin::Result result = Mixin::forward(q, k, v, mask, options);
  Mixin::backward(q, q, k, v, result, options);
  expect_same_bits(q, before[0], "q");
  expect_same_bits(k, before[1], "k");
  expect_same_bits(v, before[2], "v");

  LayerPair layers(full_config(), random);
  const Tensor x = random.normal({2, 9, 24}), dout = random.normal({2, 9, 24});
  const Tensor x_before = clone(x), dout_before = clone(dout);
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  run_layer(*layers.flash, inputs, dout);
  run_layer(*layers.plain, inputs, dout);
  expect_same_bits(x, x_before, "hidden_states");
  expect_same_bits(dout, dout_before, "dout");
}

TEST(Checklist, P23_OutputDtypeAndLayout) {
  Random random;
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    const Tensor q = random.normal({2, 5, 4, 8}, dtype);
    const Tensor mask = mask_of({"00111", "11111"});
    for (const bool masked : {false, true}) {
      const Mixin::Result result = Mixin::forward(q, q, q, masked ? mask.view() : TensorView{});
      EXPECT_EQ(result.out().dtype, dtype);
      EXPECT_EQ(to_string(result.out().shape), "[2,5,4,8]");
      EXPECT_TRUE(result.out().is_contiguous());
      EXPECT_EQ(to_string(result.out().reshape({2, 5, 32}).shape), "[2,5,32]");
    }
  }
}

TEST(Checklist, P24_ValuesOfAnotherWidth) {
  Random random;
  const Tensor q = random.normal({2, 6, 4, 24}), k = random.normal({2, 6, 2, 24});
  const Tensor v = random.normal({2, 6, 2, 16});
  const Tensor mask = mask_of({"001111", "111101"});
  const Mixin::Result result = Mixin::forward(q, k, v, mask);
  EXPECT_EQ(to_string(result.out().shape), "[2,6,4,16]");
  Tensor wide = Tensor::zeros({2, 6, 2, 24}, DType::float32);  // the padding that others need
  copy(v, wide.view().slice(3, 0, 16));
  const Mixin::Result padded = Mixin::forward(q, k, wide, mask);
  expect_near(result.out(), padded.out().slice(3, 0, 16), kTight, "out");
  const Tensor dout = random.normal({2, 6, 4, 16});
  const Mixin::Gradients gradients = Mixin::backward(dout, q, k, v, result);
  EXPECT_EQ(to_string(gradients.dv.shape()), "[2,6,2,16]");
}

TEST(Checklist, P25_DeterministicByArgumentAndEnvironment) {
  Random random;
  LayerPair layers(full_config(), random);
  const Tensor x = random.normal({3, 70, 24}), dout = random.normal({3, 70, 24});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  const LayerRun expected = run_layer(*layers.flash, inputs, dout);
  const auto expect_equal_bits = [&](const char* how) {
    for (const int threads : {1, 2, 5}) {
      with_threads(threads, [&] {
        const LayerRun run = run_layer(*layers.flash, inputs, dout);
        expect_same_bits(run.gradients.hidden_states, expected.gradients.hidden_states, how);
        for (std::size_t i = 0; i < run.parameters.size(); ++i) {
          expect_same_bits(run.parameters[i], expected.parameters[i], run.names[i]);
        }
      });
    }
  };
  inputs.deterministic = true;
  expect_equal_bits("argument");
  inputs.deterministic = false;
  const EnvironmentVariable variable("FLASHMHA_DETERMINISTIC", "1");
  expect_equal_bits("environment");
}

// On a CPU bits repeat in any case: what the kernels are asked for is in the message of one that
// does not serve a backward.
TEST(Checklist, P25_DeterministicReachesTheKernels) {
  Random random;
  LayerPair layers(small_config(), random);
  const Tensor x = random.normal({2, 7, 24}), dout = random.normal({2, 7, 24});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  nn::AttentionSaved saved;
  layers.flash->forward(inputs, &saved);
  const auto is_asked_for = [&](bool argument, const char* environment) {
    const EnvironmentVariable variable("FLASHMHA_DETERMINISTIC", environment);
    const EnvironmentVariable forced("FLASHMHA_FORCE_KERNEL", "cpu_decode");
    inputs.deterministic = argument;
    std::string message;
    try {
      layers.flash->backward(dout, inputs, saved);
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_NE(message.find("[make_plan] no kernel serves: backward"), std::string::npos) << message;
    return message.find(", deterministic") != std::string::npos;
  };
  EXPECT_FALSE(is_asked_for(false, nullptr));
  EXPECT_TRUE(is_asked_for(true, nullptr));
  EXPECT_TRUE(is_asked_for(false, "1"));
  EXPECT_FALSE(is_asked_for(false, "0"));
  EXPECT_TRUE(is_asked_for(true, "0"));
}

TEST(Checklist, P26_LengthsMayBeUpperBounds) {
  Random random;
  const Tensor q = random.normal({1, 9, 4, 8});
  PackedSequences packed = packed_sequences(int32_matrix({{0, 1, 2, 3, 0, 1, 2, 0, 1}}));
  EXPECT_EQ(packed.max_seqlen, 4);
  Mixin::Options options;
  options.attention.causal = true;
  options.packed = &packed;
  const Mixin::Result exact = Mixin::forward(q, q, q, {}, options);
  const Mixin::Gradients exact_gradients = Mixin::backward(q, q, q, q, exact, options);
  for (const std::int64_t bound : {9, 1000, 0}) {  // 0: looked up
    packed.max_seqlen = bound;
    const Mixin::Result result = Mixin::forward(q, q, q, {}, options);
    expect_same_bits(result.out(), exact.out(), "out");
    expect_same_bits(Mixin::backward(q, q, q, q, result, options).dk, exact_gradients.dk, "dk");
  }
}

TEST(Checklist, P27_BeamSearchOnCaches) {
  Random random;
  LayerPair layers(small_config(), random);
  const Tensor prompt = random.normal({1, 5, 24}), first = random.normal({3, 1, 24});
  const Tensor second = random.normal({3, 1, 24});
  const std::vector<std::int64_t> order{2, 0, 2};
  const std::function<std::unique_ptr<nn::KVCache>()> factories[] = {
      [] { return std::make_unique<nn::DynamicKVCache>(); },
      [] { return std::make_unique<nn::StaticKVCache>(9); },
      [] { return std::make_unique<nn::SlidingKVCache>(9); },
      [] { return std::make_unique<nn::PagedKVCache>(2); },
  };
  for (const auto& make : factories) {
    nn::KVCaches caches = nn::KVCaches::create(1, [&](std::int64_t) { return make(); });
    nn::AttentionInputs inputs;
    inputs.cache = caches.layers[0].get();
    inputs.hidden_states = prompt;
    layers.flash->forward(inputs);
    caches.repeat(3);
    inputs.hidden_states = first;
    layers.flash->forward(inputs);
    caches.reorder(order);
    inputs.hidden_states = second;
    const Tensor out = layers.flash->forward(inputs);
    for (std::int64_t b = 0; b < 3; ++b) {
      const Tensor whole = Tensor::empty({1, 7, 24}, DType::float32);
      copy(prompt, whole.view().slice(1, 0, 5));
      copy(pick(first, order[static_cast<std::size_t>(b)], {0}), whole.view().slice(1, 5, 6));
      copy(pick(second, b, {0}), whole.view().slice(1, 6, 7));
      nn::AttentionInputs alone;
      alone.hidden_states = whole;
      expect_near(out.view().slice(0, b, b + 1), layers.flash->forward(alone).view().slice(1, 6, 7),
                  kTight, "beam");
    }
    caches.crop(5);
    EXPECT_EQ(caches.seqlen(), 5);
  }
}

TEST(Checklist, P28_GradientsFlowThroughPaddingAndRotary) {
  Random random;
  LayerPair layers(small_config(), random);
  const Tensor mask = mask_of({"0001111", "1101011"});
  const Tensor x = random.normal({2, 7, 24}), dout = random.normal({2, 7, 24});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  inputs.attention_mask = mask;
  const LayerRun padded = run_layer(*layers.flash, inputs, dout);
  Values total;
  for (std::int64_t b = 0; b < 2; ++b) {
    const std::vector<std::int64_t> real = real_columns(mask, b);
    const Tensor row = pick(x, b, real), drow = pick(dout, b, real);
    nn::AttentionInputs alone;
    alone.hidden_states = row;
    const LayerRun single = run_layer(*layers.flash, alone, drow);
    expect_near(pick(padded.gradients.hidden_states, b, real), single.gradients.hidden_states,
                kTight, "hidden_states");
    const Values q = values_of(single.parameters[0]);
    total.resize(q.size());
    for (std::size_t i = 0; i < q.size(); ++i)
      total[i] += q[i];
  }
  expect_near(padded.parameters[0], total, 1e-4, "q_proj.weight");
}

TEST(Checklist, P29_BFloat16WithinTwicePlain) {
  Random random;
  const Tensor mask = mask_of({std::string(20, '0') + std::string(80, '1'), std::string(100, '1')});
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    const Tensor q = random.normal({2, 100, 4, 32}, dtype),
                 k = random.normal({2, 100, 2, 32}, dtype);
    const Tensor v = random.normal({2, 100, 2, 32}, dtype);
    Mixin::Options options;
    options.attention.causal = true;
    const Mixin::Result flash = Mixin::forward(q, k, v, mask, options);
    Tensor matrix = Tensor::empty({2, 1, 100, 100}, DType::boolean);
    for (std::int64_t i = 0; i < matrix.numel(); ++i) {
      const std::int64_t b = i / 10000, row = i / 100 % 100, column = i % 100;
      const bool* real = mask.as<bool>() + b * 100;
      matrix.as<bool>()[i] = real[row] && real[column] && column <= row;
    }
    const AttentionOptions plain{.mask = matrix};
    const nn::PlainAttentionResult yardstick = nn::plain_attention(q, k, v, plain);
    const nn::PlainAttentionResult exact = nn::plain_attention(
        cast(q, DType::float32), cast(k, DType::float32), cast(v, DType::float32), plain);
    AccuracyRule rule;
    rule.add("out", flash.out(), yardstick.out, exact.out);
    rule.expect();
  }
}

TEST(Checklist, P30_NoQueriesGiveAnEmptyResult) {
  const Tensor q = Tensor::empty({2, 0, 4, 8}, DType::float32);
  const Tensor k = Tensor::zeros({2, 5, 2, 8}, DType::float32);
  const Mixin::Result result = Mixin::forward(q, k, k);
  EXPECT_EQ(to_string(result.out().shape), "[2,0,4,8]");
  const Mixin::Result masked = Mixin::forward(q, k, k, mask_of({"00111", "11111"}));
  EXPECT_EQ(to_string(masked.out().shape), "[2,0,4,8]");
  const Mixin::Gradients gradients = Mixin::backward(q, q, k, k, result);
  EXPECT_TRUE(all_zero(gradients.dk)) << "no query, no gradient";
}

}  // namespace
}  // namespace flashmha::tests
