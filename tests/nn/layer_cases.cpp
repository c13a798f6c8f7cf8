#include "tests/nn/layer_cases.h"

#include <fmt/format.h>

namespace flashmha::tests {

LayerPair::LayerPair(const nn::AttentionConfig& config, Random& random, DType dtype)
    : plain(std::make_unique<nn::MultiHeadAttention>(config, dtype)),
      flash(std::make_unique<nn::FlashMultiHeadAttention>(config, dtype)) {
  randomise(*plain, random);
  copy_parameters(*plain, *flash);
}

LayerPair::LayerPair(LayerPair& source, DType dtype)
    : plain(std::make_unique<nn::MultiHeadAttention>(source.plain->config, dtype)),
      flash(std::make_unique<nn::FlashMultiHeadAttention>(source.plain->config, dtype)) {
  copy_parameters(*source.plain, *plain);
  copy_parameters(*source.plain, *flash);
}

nn::AttentionConfig small_config() {
  nn::AttentionConfig config;
  config.hidden_size = 24;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.rotary = nn::RotaryConfig{};
  return config;
}

nn::AttentionConfig full_config() {
  nn::AttentionConfig config = small_config();
  config.qkv_bias = true;
  config.out_bias = true;
  config.qk_norm = true;
  config.softmax_scale = 0.9f;
  config.sliding_window = 5;
  config.softcap = 3.0f;
  config.sinks = true;
  config.rotary->partial_rotary_factor = 0.5;
  return config;
}

LayerRun run_layer(nn::MultiHeadAttention& layer, const nn::AttentionInputs& inputs,
                   const TensorView& dout) {
  LayerRun run;
  nn::AttentionSaved saved;
  layer.visit("", [](const std::string&, nn::Parameter& p) { p.gradient = {}; });
  run.out = layer.forward(inputs, &saved);
  run.gradients = layer.backward(dout, inputs, saved);
  layer.visit("", [&](const std::string& name, nn::Parameter& p) {
    run.parameters.push_back(clone(p.gradient_sum()));
    run.names.push_back(name);
  });
  return run;
}

void expect_equal_runs(const LayerRun& actual, const LayerRun& expected, double tolerance) {
  expect_near(actual.out, expected.out, tolerance, "out");
  expect_near(actual.gradients.hidden_states, expected.gradients.hidden_states, tolerance,
              "hidden_states");
  if (expected.gradients.encoder_states.defined()) {
    expect_near(actual.gradients.encoder_states, expected.gradients.encoder_states, tolerance,
                "encoder_states");
  }
  for (std::size_t i = 0; i < expected.parameters.size(); ++i) {
    expect_near(actual.parameters[i], expected.parameters[i], tolerance, expected.names[i]);
  }
}

void AccuracyRule::add(const std::string& what, const TensorView& actual, const TensorView& plain,
                       const TensorView& exact) {
  const Values a = values_of(actual), p = values_of(plain), e = values_of(exact);
  ASSERT_EQ(a.size(), e.size()) << what;
  double error = 0.0, error_of_plain = 0.0, largest = 0.0;
  for (std::size_t i = 0; i < e.size(); ++i) {
    ASSERT_TRUE(std::isfinite(a[i]) && std::isfinite(e[i])) << what << " element " << i;
    error = std::max(error, std::abs(a[i] - e[i]));
    error_of_plain = std::max(error_of_plain, std::abs(p[i] - e[i]));
    largest = std::max(largest, std::abs(e[i]));
  }
  if (error == 0.0) return;
  const double times = what == "out" ? 2.0 : 3.0;
  const double half_unit = plain.dtype == DType::bfloat16 ? 0x1p-9 : 0x1p-12;
  Ratios& ratios = ratios_[what];
  ratios.log_sum += std::log(error / (times * error_of_plain + half_unit * largest));
  ++ratios.count;
}

void AccuracyRule::expect() const {
  for (const auto& [what, ratios] : ratios_)
    EXPECT_LE(std::exp(ratios.log_sum / ratios.count), 1.0) << what;
}

std::vector<std::int64_t> real_columns(const TensorView& mask, std::int64_t b) {
  std::vector<std::int64_t> columns;
  for (std::int64_t i = 0; i < mask.size(1); ++i) {
    if (mask.as<bool>()[b * mask.size(1) + i]) columns.push_back(i);
  }
  return columns;
}

Tensor pick(const TensorView& x, std::int64_t b, const std::vector<std::int64_t>& columns) {
  const auto count = static_cast<std::int64_t>(columns.size());
  Shape shape = x.shape;
  shape[0] = 1;
  shape[1] = count;
  Tensor picked = Tensor::empty(shape, x.dtype);
  for (std::int64_t i = 0; i < count; ++i) {
    copy(x.select(0, b).select(0, columns[static_cast<std::size_t>(i)]),
         picked.view().select(0, 0).select(0, i));
  }
  return picked;
}

}  // namespace flashmha::tests
