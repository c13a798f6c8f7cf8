// The decoder against an independent implementation in double precision, and against itself.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "flashmha/padding.h"
#include "flashmha/random.h"
#include "flashmha/sanity.h"
#include "flashmha/training.h"
#include "tests/core/expect_error.h"
#include "tests/model/fixture.h"
#include "tests/model/llama_in_double.h"

namespace flashmha {
namespace {

using model::AttentionKind;
using model::CausalLM;
using model::ModelConfig;
using namespace test;

std::vector<std::vector<std::int64_t>> rows_of(const TensorView& ids) {
  std::vector<std::vector<std::int64_t>> rows;
  for (std::int64_t b = 0; b < ids.size(0); ++b) {
    const auto* row = ids.select(0, b).as<std::int64_t>();
    rows.emplace_back(row, row + ids.size(1));
  }
  return rows;
}

Tensor tensor_of(const Matrix& rows) {
  Tensor tensor = Tensor::empty(
      {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(rows.front().size())},
      DType::float32);
  float* value = tensor.as<float>();
  for (const Vector& row : rows) {
    for (const double element : row)
      *value++ = static_cast<float>(element);
  }
  return tensor;
}

// Each configuration that the independent implementation knows.
std::vector<ModelConfig> configurations() {
  std::vector<ModelConfig> configs;
  for (const AttentionKind kind : {AttentionKind::plain, AttentionKind::flash}) {
    configs.push_back(tiny_config(kind));
    configs.push_back(tiny_config(kind));
    configs.back().tie_word_embeddings = true;
    configs.push_back(tiny_config(kind));
    configs.back().attention.sliding_window = 5;
    configs.push_back(tiny_config(kind));
    configs.back().attention.num_kv_heads = 1;
    configs.back().attention.rotary->rope_theta = 500.0;
  }
  return configs;
}

TEST(C1, model_logits_match_double_precision) {
  for (const ModelConfig& config : configurations()) {
    CausalLM model(config);
    model.init_weights(test_seed());
    const Tensor ids = random_ids(2, 13, config.vocab_size, test_seed() + 1);
    const Tensor logits = model.forward({.input_ids = ids});
    const LlamaInDouble truth(model);
    for (std::int64_t b = 0; b < 2; ++b) {
      const Tensor expected = tensor_of(truth.logits(rows_of(ids)[static_cast<std::size_t>(b)]));
      EXPECT_LT(model::relative_error(logits.view().select(0, b), expected), 1e-5)
          << attention_kind_name(config.attention_kind);
    }
  }
}

// <gradient, direction> against (loss(w + h d) - loss(w - h d)) / 2h, h small in double precision.
// The direction leans towards the gradient, so that the derivative is not lost in rounding.
TEST(C1, model_gradients_match_finite_differences) {
  std::mt19937_64 random(test_seed());
  std::normal_distribution<double> normal;
  for (const ModelConfig& config : configurations()) {
    CausalLM model(config);
    model.init_weights(test_seed());
    const Tensor ids = random_ids(2, 9, config.vocab_size, test_seed() + 1);
    const Tensor labels = clone(ids);
    fill(labels.view().select(0, 1).slice(0, 3, 5), -100.0);
    const model::Loss loss = accumulate_gradients(model, {.input_ids = ids}, labels);

    LlamaInDouble truth(model);
    const auto rows = rows_of(ids);
    const auto targets = rows_of(labels);
    EXPECT_NEAR(loss.mean, truth.loss(rows, targets), 1e-5);
    EXPECT_EQ(loss.num_tokens, 2 * 8 - 2);

    for (const auto& [name, gradient] : gradients_of(model)) {
      Vector& weight = truth.weights.at(name);
      const float* slope = gradient.as<float>();
      double gradient_norm = 0.0;
      for (std::size_t i = 0; i < weight.size(); ++i)
        gradient_norm += double(slope[i]) * slope[i];
      gradient_norm = std::sqrt(gradient_norm);
      ASSERT_GT(gradient_norm, 0.0) << name;
      Vector direction(weight.size());
      double expected = 0.0;
      for (std::size_t i = 0; i < weight.size(); ++i) {
        direction[i] = slope[i] / gradient_norm +
                       normal(random) / std::sqrt(static_cast<double>(weight.size()));
        expected += direction[i] * slope[i];
      }
      const Vector original = weight;
      const auto loss_at = [&](double step) {
        for (std::size_t i = 0; i < weight.size(); ++i) {
          weight[i] = original[i] + step * direction[i];
        }
        return truth.loss(rows, targets);
      };
      constexpr double kStep = 1e-5;
      const double measured = (loss_at(kStep) - loss_at(-kStep)) / (2.0 * kStep);
      weight = original;
      EXPECT_NEAR(measured, expected, 2e-4 * gradient_norm)
          << name << ", " << attention_kind_name(config.attention_kind);
    }
  }
}

TEST(Model, ParametersCarryHuggingFaceNamesAndShapes) {
  ModelConfig config = tiny_config();
  CausalLM model(config);
  std::map<std::string, Shape> shapes;
  for (const auto& [name, view] : weights_of(model))
    shapes[name] = view.shape;
  const std::map<std::string, Shape> expected_layer = {
      {"input_layernorm.weight", {32}},      {"post_attention_layernorm.weight", {32}},
      {"self_attn.q_proj.weight", {32, 32}}, {"self_attn.k_proj.weight", {16, 32}},
      {"self_attn.v_proj.weight", {16, 32}}, {"self_attn.o_proj.weight", {32, 32}},
      {"mlp.gate_proj.weight", {48, 32}},    {"mlp.up_proj.weight", {48, 32}},
      {"mlp.down_proj.weight", {32, 48}}};
  std::map<std::string, Shape> expected = {{"model.embed_tokens.weight", {50, 32}},
                                           {"model.norm.weight", {32}},
                                           {"lm_head.weight", {50, 32}}};
  for (const auto& [name, shape] : expected_layer) {
    expected["model.layers.0." + name] = shape;
    expected["model.layers.1." + name] = shape;
  }
  EXPECT_EQ(shapes, expected);

  config.tie_word_embeddings = true;
  CausalLM tied(config);
  EXPECT_FALSE(weights_of(tied).contains("lm_head.weight"));
  EXPECT_EQ(model.num_parameters() - tied.num_parameters(), 50 * 32);
}

TEST(Model, InitialisationDependsOnSeedAndNameOnly) {
  CausalLM first(tiny_config());
  CausalLM second(tiny_config(AttentionKind::plain));
  first.init_weights(7);
  second.init_weights(7);
  for (const auto& [name, view] : weights_of(first)) {
    EXPECT_EQ(model::relative_error(weights_of(second).at(name), view), 0.0) << name;
  }
  second.init_weights(8);
  const std::string name = "model.layers.0.self_attn.q_proj.weight";
  EXPECT_GT(model::relative_error(weights_of(second).at(name), weights_of(first).at(name)), 0.1);
  // Layers of one model differ, and the standard deviation is the config's.
  EXPECT_GT(model::relative_error(weights_of(first).at("model.layers.1.self_attn.q_proj.weight"),
                                  weights_of(first).at(name)),
            0.1);
  const TensorView weight = weights_of(first).at(name);
  double squares = 0.0;
  for (std::int64_t i = 0; i < weight.numel(); ++i) {
    squares += double(weight.as<float>()[i]) * weight.as<float>()[i];
  }
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(weight.numel())), 0.2, 0.02);
}

TEST(Model, CopyWeightsConvertsAndRefusesOtherShapes) {
  CausalLM source(tiny_config());
  source.init_weights(test_seed());
  ModelConfig config = tiny_config();
  config.dtype = DType::bfloat16;
  CausalLM rounded(config);
  copy_weights(source, rounded);
  for (const auto& [name, view] : weights_of(rounded)) {
    EXPECT_LT(model::relative_error(view, weights_of(source).at(name)), 0x1p-8) << name;
  }
  config = tiny_config();
  config.vocab_size = 51;
  CausalLM larger(config);
  expect_error(ErrorCode::invalid_argument,
               {"model.embed_tokens.weight must have the same shape in both models"},
               [&] { copy_weights(source, larger); });
  config = tiny_config();
  config.num_layers = 3;
  CausalLM deeper(config);
  expect_error(ErrorCode::invalid_argument, {"the source has no model.layers.2"},
               [&] { copy_weights(source, deeper); });
  expect_error(ErrorCode::invalid_argument, {"the destination only"},
               [&] { copy_weights(deeper, source); });
}

// Two sequences end to end in one row give what each gives alone: logits and gradients.
TEST(B9, model_packed_sequences_equal_each_alone) {
  for (const AttentionKind kind : {AttentionKind::plain, AttentionKind::flash}) {
    const ModelConfig config = tiny_config(kind);
    CausalLM model(config);
    model.init_weights(test_seed());
    const Tensor ids = random_ids(1, 12, config.vocab_size, test_seed() + 1);
    const TensorView first = ids.view().slice(1, 0, 5);
    const TensorView second = ids.view().slice(1, 5, 12);
    const Tensor positions =
        Tensor::from<std::int32_t>({0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6}, {1, 12});
    const PackedSequences packed = packed_sequences(positions);
    const model::ModelInputs inputs{.input_ids = ids, .packed = &packed};

    const Tensor logits = model.forward(inputs);
    EXPECT_LT(
        model::relative_error(logits.view().slice(1, 0, 5), model.forward({.input_ids = first})),
        1e-5);
    EXPECT_LT(
        model::relative_error(logits.view().slice(1, 5, 12), model.forward({.input_ids = second})),
        1e-5);

    const model::Loss loss = accumulate_gradients(model, inputs, ids);
    EXPECT_EQ(loss.num_tokens, 4 + 6);  // no token is predicted from another sequence
    CausalLM alone(config);
    copy_weights(model, alone);
    const double first_loss =
        accumulate_gradients(alone, {.input_ids = first}, clone(first), 0.4f).mean;
    const double second_loss =
        accumulate_gradients(alone, {.input_ids = second}, clone(second), 0.6f).mean;
    EXPECT_NEAR(loss.mean, 0.4 * first_loss + 0.6 * second_loss, 1e-5);
    for (const auto& [name, gradient] : gradients_of(alone)) {
      EXPECT_LT(model::relative_error(gradients_of(model).at(name), gradient), 1e-4) << name;
    }
  }
}

TEST(Model, LastLogitsOnlyAreTheLastOfAll) {
  CausalLM model(tiny_config());
  model.init_weights(test_seed());
  const Tensor ids = random_ids(3, 7, 50, test_seed() + 1);
  const Tensor all = model.forward({.input_ids = ids});
  const Tensor last = model.forward({.input_ids = ids, .last_logits_only = true});
  EXPECT_EQ(last.shape(), (Shape{3, 1, 50}));
  EXPECT_LT(model::relative_error(last, all.view().slice(1, 6, 7)), 1e-6);
}

TEST(Model, RefusesBadInput) {
  const auto refuses = [](const std::function<void(ModelConfig&)>& change, const char* message) {
    ModelConfig config = tiny_config();
    change(config);
    expect_error(ErrorCode::invalid_argument, {message}, [&] { CausalLM model(config); });
  };
  refuses([](ModelConfig& config) { config.vocab_size = 0; }, "must be positive");
  refuses([](ModelConfig& config) { config.num_layers = -1; }, "must be positive");
  refuses([](ModelConfig& config) { config.attention.num_kv_heads = 3; }, "num_kv_heads");

  CausalLM model(tiny_config());
  const Tensor rank1 = Tensor::zeros({4}, DType::int64);
  expect_error(ErrorCode::invalid_argument,
               {"[CausalLM.forward] input_ids must be int32 or int64 [batch, seqlen]"},
               [&] { model.forward({.input_ids = rank1}); });
  const Tensor floats = Tensor::zeros({1, 4}, DType::float32);
  expect_error(ErrorCode::invalid_argument, {"[CausalLM.forward] input_ids"},
               [&] { model.forward({.input_ids = floats}); });
  const Tensor outside = Tensor::from<std::int64_t>({1, 50}, {1, 2});
  expect_error(ErrorCode::invalid_argument, {"50"}, [&] { model.forward({.input_ids = outside}); });

  const Tensor ids = random_ids(1, 4, 50, 1);
  CausalLM::Saved saved;
  const Tensor logits = model.forward({.input_ids = ids}, &saved);
  const Tensor wrong = Tensor::zeros({1, 4, 49}, DType::float32);
  expect_error(ErrorCode::invalid_argument, {"dlogits must be contiguous [1,4,50]"},
               [&] { model.backward(wrong, {.input_ids = ids}, std::move(saved)); });
  model.backward(logits, {.input_ids = ids}, std::move(saved));
  expect_error(ErrorCode::invalid_argument, {"serves once"},
               [&] { model.backward(logits, {.input_ids = ids}, std::move(saved)); });
}

// What forward and backward need beyond weights and gradients, for one sequence of this length.
std::size_t training_bytes(AttentionKind kind, std::int64_t seqlen) {
  CausalLM model(tiny_config(kind));
  model.init_weights(1);
  gradients_of(model);
  const Tensor ids = random_ids(1, seqlen, 50, 2);
  accumulate_gradients(model, {.input_ids = ids}, ids);  // tables of the rotary embedding
  reset_peak_memory();
  const std::size_t before = memory_stats().current_bytes;
  accumulate_gradients(model, {.input_ids = ids}, ids);
  return memory_stats().peak_bytes - before;
}

// The table in docs/implementation.md and docs/model.md, to the byte. Every tensor is a multiple of
// what allocations are rounded up to.
TEST(Model, KeepsWhatTheArithmeticSays) {
  for (const AttentionKind kind : {AttentionKind::flash, AttentionKind::plain}) {
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      ModelConfig config = tiny_config(kind);
      config.dtype = dtype;
      const CausalLM model(config);
      const std::int64_t batch = 4, seqlen = 64, tokens = batch * seqlen;
      const Tensor ids = random_ids(batch, seqlen, config.vocab_size, test_seed());
      model.forward({.input_ids = ids});  // makes the rotary tables
      const std::size_t before = memory_stats().current_bytes;
      CausalLM::Saved saved;
      const Tensor logits = model.forward({.input_ids = ids}, &saved);
      const std::size_t kept = memory_stats().current_bytes - before;

      const auto e = static_cast<std::int64_t>(dtype_bytes(dtype));
      const std::int64_t h = config.attention.hidden_size, heads = config.attention.num_heads;
      const std::int64_t q = heads * config.attention.head_dim;
      const std::int64_t k = config.attention.num_kv_heads * config.attention.head_dim;
      std::int64_t layer =
          tokens * (e * (2 * h + 2 * q + 2 * k + 2 * config.intermediate_size) + 4 * heads + 12);
      if (kind == AttentionKind::plain) layer += batch * e * heads * seqlen * seqlen;
      // The final norm's input and what it saves, the logits.
      const std::int64_t others = tokens * (e * h + 4 + e * config.vocab_size);
      EXPECT_EQ(kept, static_cast<std::size_t>(config.num_layers * layer + others))
          << dtype_name(dtype) << (kind == AttentionKind::plain ? ", plain" : ", flash");
    }
  }
}

TEST(A11, training_memory_is_linear_with_flash_and_quadratic_with_plain) {
  const double flash = static_cast<double>(training_bytes(AttentionKind::flash, 2048)) /
                       static_cast<double>(training_bytes(AttentionKind::flash, 1024));
  const double plain = static_cast<double>(training_bytes(AttentionKind::plain, 2048)) /
                       static_cast<double>(training_bytes(AttentionKind::plain, 1024));
  EXPECT_LT(flash, 2.1);
  EXPECT_GT(plain, 3.5);
}

}  // namespace
}  // namespace flashmha
