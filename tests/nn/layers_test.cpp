// Linear, RMSNorm, MLP, and rows A6, A7, A9 and C3: the attention layers.
#include <fmt/format.h>

#include "tests/nn/layer_cases.h"

namespace flashmha::tests {
namespace {

TEST(Linear, ForwardBackwardAndAccumulation) {
  Random random;
  nn::Linear linear(13, 9, true, DType::float32);
  randomise(linear, random);
  const Tensor x = random.normal({2, 5, 13}), dout = random.normal({2, 5, 9});
  const Values w = values_of(linear.weight.value), b = values_of(linear.bias.value);
  const auto forward = [&](const Values& vx, const Values& vw, const Values& vb) {
    Values y;
    for (std::size_t row = 0; row < 10; ++row) {
      for (std::size_t j = 0; j < 9; ++j) {
        y.push_back(vb[j]);
        for (std::size_t i = 0; i < 13; ++i)
          y.back() += vx[row * 13 + i] * vw[j * 13 + i];
      }
    }
    return y;
  };
  const Values vx = values_of(x);
  expect_near(linear.forward(x), forward(vx, w, b), 1e-5, "y");
  const Tensor dx = linear.backward(dout, x);
  const Tensor again = linear.backward(dout, x);  // parameters' gradients add up
  const auto loss_x = [&](const Values& v) { return weighted_sum(dout, forward(v, w, b)); };
  const auto twice_w = [&](const Values& v) { return 2 * weighted_sum(dout, forward(vx, v, b)); };
  const auto twice_b = [&](const Values& v) { return 2 * weighted_sum(dout, forward(vx, w, v)); };
  expect_near(dx, numeric_gradient(loss_x, vx), 1e-4, "dx");
  expect_same_bits(again, dx, "dx again");
  expect_near(linear.weight.gradient, numeric_gradient(twice_w, w), 1e-4, "dweight");
  expect_near(linear.bias.gradient, numeric_gradient(twice_b, b), 1e-4, "dbias");
  linear.weight.zero_gradient();
  EXPECT_TRUE(all_zero(linear.weight.gradient));
  expect_error([&] { linear.forward(dout); }, {"[Linear]", "[...,13]", "[2,5,9]"});
}

TEST(MLP, GradientsByFiniteDifferences) {
  Random random;
  nn::MLP mlp(5, 7, ops::Activation::silu, false, DType::float32);
  randomise(mlp, random);
  const Tensor x = random.normal({3, 5}), dout = random.normal({3, 5});
  const auto product = [](const Values& a, const Values& w, std::size_t in, std::size_t out) {
    Values y;
    for (std::size_t row = 0; row < a.size() / in; ++row) {
      for (std::size_t j = 0; j < out; ++j) {
        y.push_back(0.0);
        for (std::size_t i = 0; i < in; ++i)
          y.back() += a[row * in + i] * w[j * in + i];
      }
    }
    return y;
  };
  const auto forward = [&](const Values& v, const Values& wg, const Values& wu, const Values& wd) {
    Values gate = product(v, wg, 5, 7);
    const Values up = product(v, wu, 5, 7);
    for (std::size_t i = 0; i < gate.size(); ++i)
      gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
    return product(gate, wd, 7, 5);
  };
  const Values v = values_of(x), g = values_of(mlp.gate_proj.weight.value),
               u = values_of(mlp.up_proj.weight.value), d = values_of(mlp.down_proj.weight.value);
  nn::MLP::Saved saved;
  const Tensor out = mlp.forward(x, &saved);
  expect_near(out, forward(v, g, u, d), 1e-5, "out");
  expect_same_bits(mlp.forward(x), out, "without saving");
  const Tensor dx = mlp.backward(dout, x, saved);
  const auto check = [&](const TensorView& gradient, const Values& at, auto at_value) {
    const auto loss = [&](const Values& p) { return weighted_sum(dout, at_value(p)); };
    expect_near(gradient, numeric_gradient(loss, at), 1e-4, "gradient");
  };
  check(dx, v, [&](const Values& p) { return forward(p, g, u, d); });
  check(mlp.gate_proj.weight.gradient, g, [&](const Values& p) { return forward(v, p, u, d); });
  check(mlp.up_proj.weight.gradient, u, [&](const Values& p) { return forward(v, g, p, d); });
  check(mlp.down_proj.weight.gradient, d, [&](const Values& p) { return forward(v, g, u, p); });
}

struct Situation {
  std::string name;
  nn::AttentionConfig config;
  std::vector<std::string> mask;  // rows of 0 and 1, or empty
  bool packed = false;
  bool cross = false;
  bool dropout = false;
};

std::vector<Situation> situations() {
  std::vector<Situation> list;
  for (const auto& [name, config] :
       {std::pair{"small", small_config()}, std::pair{"full", full_config()}}) {
    const std::string prefix = name;
    list.push_back({prefix + " dense", config, {}});
    list.push_back({prefix + " left", config, {"000111111", "111111111"}});
    list.push_back({prefix + " right", config, {"111111000", "111111110"}});
    list.push_back({prefix + " middle and empty", config, {"011010110", "000000000"}});
    list.push_back({prefix + " packed", config, {}, true});
    list.push_back({prefix + " cross", config, {"1111000", "0111110"}, false, true});
    list.push_back({prefix + " dropout", config, {}, false, false, true});
    nn::AttentionConfig both_ways = config;
    both_ways.causal = false;
    list.push_back({prefix + " not causal", both_ways, {"000111111", "110111111"}});
  }
  return list;
}

// Runs one situation through any pair of layers.
class SituationRun {
 public:
  SituationRun(const Situation& situation, Random& random)
      : situation_(situation),
        x_(random.normal({2, 9, situation.config.hidden_size})),
        encoder_(random.normal({2, 7, situation.config.hidden_size})),
        dout_(random.normal(x_.shape())),
        packed_(packed_sequences(
            int32_matrix({{0, 1, 2, 3, 0, 0, 1, 2, 3}, {0, 1, 0, 1, 2, 3, 4, 5, 6}}))) {
    if (!situation.mask.empty()) mask_ = mask_of(situation.mask);
  }

  LayerRun operator()(nn::MultiHeadAttention& layer, DType dtype = DType::float32) const {
    const Tensor x = cast(x_, dtype), encoder = cast(encoder_, dtype), dout = cast(dout_, dtype);
    nn::AttentionInputs inputs;
    inputs.hidden_states = x;
    inputs.attention_mask = mask_;
    if (situation_.packed) inputs.packed = &packed_;
    if (situation_.cross) inputs.encoder_states = encoder;
    inputs.training = situation_.dropout;
    inputs.dropout_seed = 5;
    return run_layer(layer, inputs, dout);
  }

 private:
  const Situation& situation_;
  Tensor x_, encoder_, dout_, mask_;
  PackedSequences packed_;
};

TEST(A6, plain_layer_equals_flash_layer_in_float32) {
  Random random;
  for (Situation& situation : std::vector<Situation>(situations())) {
    SCOPED_TRACE(situation.name);
    if (situation.dropout) situation.config.dropout = 0.3f;
    LayerPair layers(situation.config, random);
    const SituationRun run(situation, random);
    const LayerRun plain = run(*layers.plain);
    expect_equal_runs(run(*layers.flash), plain, 2e-5);
    if (situation.cross) {
      EXPECT_TRUE(plain.gradients.encoder_states.defined());
    }
  }
}

TEST(A9, sixteen_bits_follow_the_twice_rule) {
  Random random;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const Situation& situation : situations()) {
      SCOPED_TRACE(situation.name + " " + dtype_name(dtype));
      AccuracyRule rule;
      for (int draw = 0; draw < 6; ++draw) {
        LayerPair rounded(situation.config, random, dtype);
        LayerPair exact(rounded, DType::float32);
        const SituationRun run(situation, random);
        const LayerRun reference = run(*exact.plain);
        const LayerRun plain = run(*rounded.plain, dtype);
        const LayerRun flash = run(*rounded.flash, dtype);
        rule.add("out", flash.out, plain.out, reference.out);
        rule.add("hidden_states", flash.gradients.hidden_states, plain.gradients.hidden_states,
                 reference.gradients.hidden_states);
        for (std::size_t i = 0; i < reference.parameters.size(); ++i) {
          rule.add(reference.names[i], flash.parameters[i], plain.parameters[i],
                   reference.parameters[i]);
        }
      }
      rule.expect();
    }
  }
}

// The change of the loss along a random direction of one tensor, against its gradient.
TEST(A7, gradients_predict_the_loss) {
  Random random;
  nn::AttentionConfig config = full_config();
  LayerPair layers(config, random);
  nn::FlashMultiHeadAttention& layer = *layers.flash;
  const Tensor x = random.normal({2, 9, 24}), dout = random.normal({2, 9, 24});
  const Tensor mask = mask_of({"001111111", "111011111"});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  inputs.attention_mask = mask;
  const LayerRun run = run_layer(layer, inputs, dout);
  const auto loss = [&] { return weighted_sum(dout, values_of(layer.forward(inputs))); };
  const auto expect_slope = [&](const TensorView& value, const TensorView& gradient,
                                const std::string& name) {
    const Tensor direction = random.normal(value.shape);
    const Tensor center = clone(value);
    const Values c = values_of(center), d = values_of(direction);
    const double step = 4e-3;
    const auto loss_at = [&](double distance) {
      for (std::size_t i = 0; i < c.size(); ++i) {
        value.as<float>()[i] = static_cast<float>(c[i] + distance * d[i]);
      }
      return loss();
    };
    // Fourth order, so that the step may be large enough for float32.
    const double slope =
        (8 * (loss_at(step) - loss_at(-step)) - (loss_at(2 * step) - loss_at(-2 * step))) /
        (12 * step);
    copy(center, value);
    const double predicted = weighted_sum(direction, values_of(gradient));
    EXPECT_NEAR(slope, predicted, 5e-3 * std::max(1.0, std::abs(predicted))) << name;
  };
  expect_slope(x, run.gradients.hidden_states, "hidden_states");
  std::size_t i = 0;
  layer.visit("", [&](const std::string& name, nn::Parameter& parameter) {
    expect_slope(parameter.value, run.parameters[i++], name);
  });
  EXPECT_EQ(i, 11u) << "four projections with biases, two norms, sinks";
}

using Factory = std::function<std::unique_ptr<nn::KVCache>()>;

// Rows of different lengths, padded on the left, through chunks and single tokens of a cache; every
// real token must get what its sequence gets alone, without padding and without a cache.
void expect_generation_equals_single_runs(const nn::AttentionConfig& config, const Factory& make,
                                          const std::vector<std::int64_t>& chunks, Random& random) {
  LayerPair layers(config, random);
  const Tensor mask =
      mask_of({"00001111111111111111", "11111111111111111111", "00000000000111111111"});
  const Tensor x = random.normal({3, 20, 24});
  std::vector<Tensor> alone;
  for (std::int64_t b = 0; b < 3; ++b) {
    const Tensor row = pick(x, b, real_columns(mask, b));
    nn::AttentionInputs inputs;
    inputs.hidden_states = row;
    alone.push_back(layers.plain->forward(inputs));
  }
  for (nn::MultiHeadAttention* layer :
       {layers.plain.get(), static_cast<nn::MultiHeadAttention*>(layers.flash.get())}) {
    const std::unique_ptr<nn::KVCache> cache = make();
    std::int64_t done = 0;
    for (const std::int64_t count : chunks) {
      const Tensor chunk = clone(x.view().slice(1, done, done + count));
      nn::AttentionInputs inputs;
      inputs.hidden_states = chunk;
      inputs.attention_mask = mask.view().slice(1, 0, done + count);
      inputs.cache = cache.get();
      nn::AttentionSaved saved;
      const Tensor out = layer->forward(inputs, &saved);
      for (std::int64_t b = 0; b < 3; ++b) {
        const std::vector<std::int64_t> real = real_columns(mask, b);
        for (std::int64_t i = 0; i < count; ++i) {
          const auto at = std::find(real.begin(), real.end(), done + i);
          const TensorView attended = saved.attended.select(0, b).select(0, i);
          if (at == real.end()) {
            if (count > 1) {
              EXPECT_TRUE(all_zero(attended)) << b << " " << done + i;
            }
            continue;
          }
          expect_near(
              out.view().select(0, b).select(0, i),
              alone[static_cast<std::size_t>(b)].view().select(0, 0).select(0, at - real.begin()),
              3e-5, fmt::format("row {} token {}", b, done + i));
        }
      }
      done += count;
    }
    EXPECT_EQ(done, 20);
  }
}

const std::vector<std::vector<std::int64_t>> kChunkings = {
    {12, 1, 1, 1, 1, 1, 1, 1, 1}, {7, 6, 1, 1, 5}, {20}, {13, 7}};

TEST(C3, varlen_rotary_left_padding_and_every_cache) {
  Random random;
  nn::AttentionConfig unbounded = full_config();
  unbounded.sliding_window = 0;
  for (const nn::AttentionConfig& config : {small_config(), unbounded, full_config()}) {
    const Factory factories[] = {
        [] { return std::make_unique<nn::DynamicKVCache>(); },
        [] { return std::make_unique<nn::StaticKVCache>(27); },
        [] { return std::make_unique<nn::PagedKVCache>(1); },
        [] { return std::make_unique<nn::PagedKVCache>(5); },
    };
    for (const Factory& make : factories) {
      for (const auto& chunks : kChunkings) {
        expect_generation_equals_single_runs(config, make, chunks, random);
      }
    }
  }
}

TEST(C3, sliding_cache_with_left_padding) {
  Random random;
  for (const std::int64_t window : {5, 6}) {  // the layer sees 5 keys
    for (const auto& chunks : kChunkings) {
      expect_generation_equals_single_runs(
          full_config(), [=] { return std::make_unique<nn::SlidingKVCache>(window); }, chunks,
          random);
    }
  }
}

TEST(C3, a_cache_that_drops_too_early_is_refused) {
  Random random;
  LayerPair layers(small_config(), random);
  nn::SlidingKVCache cache(3);
  const Tensor x = random.normal({1, 4, 24}), next = random.normal({1, 1, 24});
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  inputs.cache = &cache;
  layers.flash->forward(inputs);
  inputs.hidden_states = next;
  expect_error([&] { layers.flash->forward(inputs); },
               {"[MultiHeadAttention]", "holds 3 of 5 keys", "all of them"});
}

TEST(AttentionLayer, ErrorsNameTheRule) {
  Random random;
  nn::AttentionConfig config = small_config();
  config.num_kv_heads = 3;
  expect_error([&] { nn::MultiHeadAttention(config, DType::float32); },
               {"[AttentionConfig]", "num_heads (4)", "num_kv_heads (3)"});
  LayerPair layers(small_config(), random);
  const Tensor x = random.normal({2, 5, 24});
  const Tensor half = cast(x, DType::bfloat16);
  nn::AttentionInputs inputs;
  inputs.hidden_states = half;
  expect_error([&] { layers.flash->forward(inputs); }, {"must be float32", "bfloat16"});
  inputs.hidden_states = x;
  const Tensor mask = mask_of({"111"});
  inputs.attention_mask = mask;
  expect_error([&] { layers.flash->forward(inputs); }, {"attention_mask must be [2,length]"});
  inputs.attention_mask = {};
  nn::DynamicKVCache cache;
  inputs.cache = &cache;
  nn::AttentionSaved saved;
  const Tensor out = layers.flash->forward(inputs, &saved);
  expect_error([&] { layers.flash->backward(out, inputs, saved); },
               {"backward", "not available with a cache"});
  inputs.cache = nullptr;
  expect_error([&] { layers.flash->backward(out, inputs, nn::AttentionSaved()); },
               {"[MultiHeadAttention::backward] needs what forward saved"});
  const Tensor short_mask = mask_of({"1111111", "0111111"});
  inputs.cache = &cache;  // holds 5 tokens
  inputs.attention_mask = short_mask;
  expect_error([&] { layers.flash->forward(inputs); },
               {"[MultiHeadAttention] without position_ids, attention_mask must cover the 5 cached "
                "and the 5 new tokens",
                "[2,7]"});
  inputs.attention_mask = {};
  inputs.encoder_states = x;
  expect_error([&] { layers.flash->forward(inputs); }, {"exclude each other"});
}

}  // namespace
}  // namespace flashmha::tests
