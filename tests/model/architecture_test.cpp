// What the architectures do differently, apart from their checkpoints (tests/truth): dtypes,
// initialisation, names, layers that differ, the sanity check on all of it.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "flashmha/generation.h"
#include "flashmha/sanity.h"
#include "flashmha/training.h"
#include "tests/core/expect_error.h"
#include "tests/model/fixture.h"

namespace flashmha {
namespace {

using model::AttentionKind;
using model::CausalLM;
using model::ModelConfig;
using namespace test;

// Everything that an architecture can ask for, in three layers with and without a window.
ModelConfig gemma_config(AttentionKind kind = AttentionKind::flash) {
  ModelConfig config = tiny_config(kind);
  config.num_layers = 3;
  config.rms_norm.weight_offset = 1.0f;
  config.sublayer_output_norms = true;
  config.activation = ops::Activation::gelu_tanh;
  config.mlp_bias = true;
  config.scale_embeddings = true;
  config.logits_softcap = 5.0f;
  config.tie_word_embeddings = true;
  config.attention.qk_norm = true;
  config.attention.qk_norm_options = config.rms_norm;
  config.attention.softcap = 3.0f;
  config.attention.softmax_scale = 0.3f;
  nn::RotaryConfig local;
  local.rope_theta = 500.0;
  config.layers = {{.sliding_window = 4, .rotary = local},
                   {.rotary = config.attention.rotary},
                   {.sliding_window = 7, .rotary = local}};
  return config;
}

TEST(Architecture, four_norms_carry_hugging_face_names) {
  CausalLM model(gemma_config());
  std::set<std::string> norms;
  for (const auto& [name, view] : weights_of(model)) {
    if (name.starts_with("model.layers.2.") && name.ends_with("norm.weight")) norms.insert(name);
  }
  const std::string prefix = "model.layers.2.";
  EXPECT_EQ(
      norms,
      (std::set<std::string>{
          prefix + "input_layernorm.weight", prefix + "post_attention_layernorm.weight",
          prefix + "pre_feedforward_layernorm.weight", prefix + "post_feedforward_layernorm.weight",
          prefix + "self_attn.q_norm.weight", prefix + "self_attn.k_norm.weight"}));
  EXPECT_EQ(weights_of(model).at(prefix + "mlp.down_proj.bias").shape, (Shape{32}));
}

// Weights are differences from one: a fresh model is the same with and without the offset.
TEST(Architecture, norms_with_an_offset_start_at_a_factor_of_one) {
  ModelConfig config = gemma_config();
  CausalLM offset(config);
  config.rms_norm.weight_offset = config.attention.qk_norm_options.weight_offset = 0.0f;
  CausalLM plain(config);
  offset.init_weights(test_seed());
  plain.init_weights(test_seed());
  for (const auto& [name, view] : weights_of(offset)) {
    if (!name.ends_with("norm.weight")) continue;
    EXPECT_EQ(view.as<float>()[0], 0.0f) << name;
    EXPECT_EQ(weights_of(plain).at(name).as<float>()[0], 1.0f) << name;
  }
  const Tensor ids = random_ids(2, 11, config.vocab_size, test_seed() + 1);
  EXPECT_EQ(
      model::relative_error(offset.forward({.input_ids = ids}), plain.forward({.input_ids = ids})),
      0.0);
}

// sqrt(32) = 5.657 is 5.65625 in bfloat16, and that is what checkpoints were trained with.
TEST(Architecture, the_scale_of_embeddings_is_rounded_to_the_dtype) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    ModelConfig config = tiny_config();
    config.dtype = dtype;
    config.scale_embeddings = true;
    CausalLM scaling(config);
    scaling.init_weights(test_seed());
    config.scale_embeddings = false;
    CausalLM scaled(config);
    copy_weights(scaling, scaled);
    const float scale = dtype == DType::float32 ? std::sqrt(32.0f) : 5.65625f;
    const Tensor table = cast(weights_of(scaling).at("model.embed_tokens.weight"), DType::float32);
    for (std::int64_t i = 0; i < table.numel(); ++i)
      table.as<float>()[i] *= scale;
    copy(table, weights_of(scaled).at("model.embed_tokens.weight"));
    const Tensor ids = random_ids(2, 11, config.vocab_size, test_seed() + 1);
    EXPECT_EQ(model::relative_error(scaling.forward({.input_ids = ids}),
                                    scaled.forward({.input_ids = ids})),
              0.0)
        << dtype_name(dtype);
  }
}

TEST(Architecture, logits_stay_below_the_softcap) {
  ModelConfig config = gemma_config();
  config.initializer_range = 2.0f;
  CausalLM model(config);
  model.init_weights(test_seed());
  const Tensor logits =
      model.forward({.input_ids = random_ids(2, 11, config.vocab_size, test_seed() + 1)});
  float largest = 0.0f;
  for (std::int64_t i = 0; i < logits.numel(); ++i)
    largest = std::max(largest, std::abs(logits.as<float>()[i]));
  EXPECT_LE(largest, 5.0f);
  EXPECT_GT(largest, 4.0f);
}

TEST(Architecture, layers_must_be_as_many_as_num_layers) {
  ModelConfig config = gemma_config();
  config.layers.pop_back();
  expect_error(ErrorCode::invalid_argument, {"[ModelConfig] layers", "num_layers (3)", "got 2"},
               [&] { CausalLM model(config); });
  expect_error(ErrorCode::invalid_argument, {"layer must be in [0, 3)", "got 3"},
               [&] { static_cast<void>(config.attention_config(3)); });
  expect_error(ErrorCode::invalid_argument, {"[make_caches]", "no layer has"},
               [&] { model::make_caches(tiny_config(), model::CacheKind::sliding_cache, 8); });
}

// The window of a layer is what its cache holds: no more memory, and a layer without one forgets
// nothing.
TEST(Architecture, sliding_caches_hold_the_window_of_their_layer) {
  const ModelConfig config = gemma_config();
  CausalLM model(config);
  model.init_weights(test_seed());
  nn::KVCaches caches = make_caches(config, model::CacheKind::sliding_cache, 0);
  const Tensor ids = random_ids(1, 20, config.vocab_size, test_seed() + 1);
  for (std::int64_t t = 0; t < 20; ++t)
    model.forward({.input_ids = ids.view().slice(1, t, t + 1), .caches = &caches});
  const Tensor row = Tensor::zeros({1, 1, 2, 8}, DType::float32);
  EXPECT_EQ(caches.layers[0]->append(row, row).seqlen, 4);
  EXPECT_EQ(caches.layers[1]->append(row, row).seqlen, 21);
  EXPECT_EQ(caches.layers[2]->append(row, row).seqlen, 7);
}

// Flash against plain, padded and through caches. Weights of a known seed: sanity_test.cpp says
// why.
TEST(Architecture, the_sanity_check_passes_on_layers_that_differ) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    ModelConfig config = gemma_config();
    config.dtype = dtype;
    model::ModelTrio models(config, 1);
    int num_checks = 0;
    check_model(models, {.batch = 3, .seqlen = 16, .new_tokens = 6, .seed = 1},
                [&](const model::Check& check) {
                  EXPECT_TRUE(check.passed())
                      << dtype_name(dtype) << ": " << check.name << " " << check.error << " > "
                      << check.tolerance << " " << check.detail;
                  ++num_checks;
                });
    EXPECT_EQ(num_checks, 12);
  }
}

}  // namespace
}  // namespace flashmha
