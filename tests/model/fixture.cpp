#include "tests/model/fixture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "flashmha/random.h"

namespace flashmha::test {

model::ModelConfig tiny_config(model::AttentionKind kind) {
  model::ModelConfig config{.vocab_size = 50,
                            .intermediate_size = 48,
                            .num_layers = 2,
                            .initializer_range = 0.2f,  // logits and attention that are not flat
                            .attention_kind = kind};
  config.attention.hidden_size = 32;
  config.attention.num_heads = 4;
  config.attention.num_kv_heads = 2;
  config.attention.head_dim = 8;
  config.attention.rotary = nn::RotaryConfig{};
  return config;
}

Tensor random_ids(std::int64_t batch, std::int64_t seqlen, std::int64_t vocab_size,
                  std::uint64_t seed) {
  Tensor ids = Tensor::empty({batch, seqlen}, DType::int64);
  model::fill_integers(ids, seed, vocab_size);
  return ids;
}

Tensor left_padding_mask(const std::vector<std::int64_t>& lengths) {
  const std::int64_t seqlen = *std::ranges::max_element(lengths);
  Tensor mask = Tensor::zeros({static_cast<std::int64_t>(lengths.size()), seqlen}, DType::int64);
  for (std::size_t row = 0; row < lengths.size(); ++row) {
    const TensorView line = mask.view().select(0, static_cast<std::int64_t>(row));
    fill(line.slice(0, seqlen - lengths[row], seqlen), 1.0);
  }
  return mask;
}

void init_clear_choices(model::CausalLM& model, std::uint64_t seed,
                        const std::function<std::vector<Tokens>()>& generated) {
  constexpr float kOff = 1e-5f;  // more than another order of sums makes
  const auto shake = [&](std::mt19937_64& random) {
    std::uniform_real_distribution<float> factor(1.0f - kOff, 1.0f + kOff);
    for (const auto& [name, weight] : weights_of(model)) {
      float* w = weight.as<float>();
      for (std::int64_t i = 0; i < weight.numel(); ++i)
        w[i] *= factor(random);
    }
  };
  const auto is_clear = [&] {
    const std::vector<Tokens> expected = generated();
    std::mt19937_64 random(seed);
    for (int i = 0; i < 8; ++i) {
      model.init_weights(seed);
      shake(random);
      if (generated() != expected) return false;
    }
    model.init_weights(seed);
    return true;
  };
  constexpr int kMostTries = 20;
  for (int i = 0; i < kMostTries; ++i, ++seed) {
    model.init_weights(seed);
    if (is_clear()) return;
  }
  ADD_FAILURE() << "none of " << kMostTries << " models chooses clearly";
}

NamedTensors weights_of(model::CausalLM& model) {
  NamedTensors weights;
  model.visit(
      [&](const std::string& name, nn::Parameter& parameter) { weights[name] = parameter.value; });
  return weights;
}

NamedTensors gradients_of(model::CausalLM& model) {
  NamedTensors gradients;
  model.visit([&](const std::string& name, nn::Parameter& parameter) {
    gradients[name] = parameter.gradient_sum();
  });
  return gradients;
}

}  // namespace flashmha::test
