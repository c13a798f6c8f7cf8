// Tiny decoders of Transformers (llama.safetensors, made by make_llama.py): logits, loss, every
// gradient, greedy tokens through every cache, ten steps of training; plain and flash attention.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <tuple>
#include <vector>

#include "flashmha/generation.h"
#include "flashmha/training.h"
#include "tests/truth/compare.h"
#include "tests/truth/rotary_config.h"
#include "tests/truth/safetensors.h"

namespace flashmha::truth {
namespace {

using model::AttentionKind;

// Largest accepted distances (compare.h) of float32, a few times the largest ones that were seen.
constexpr double kLogits = 5e-6;
constexpr double kLoss = 1e-6;
constexpr double kGradients = 1e-5;
constexpr double kTrainingLoss = 2e-5;
constexpr double kTrainedWeights = 1e-4;

const File& file() {
  static const File truth(std::string(FLASHMHA_TESTS_DIR) + "/truth/llama.safetensors");
  return truth;
}

const std::vector<nlohmann::json>& descriptions() {
  static const std::vector<nlohmann::json> models = file().about().at("models");
  return models;
}

// Parameters: index of the model in the file, attention kind.
class Decoder : public testing::TestWithParam<std::tuple<std::size_t, AttentionKind>> {
 protected:
  Decoder()
      : about_(descriptions()[std::get<0>(GetParam())]),
        model_(config(about_, std::get<1>(GetParam()))) {
    model_.visit([&](const std::string& name, nn::Parameter& parameter) {
      copy(tensor("weight." + name), parameter.value);
    });
  }

  TensorView tensor(const std::string& name) const {
    return file().get(about_.at("name").get<std::string>() + "." + name);
  }
  TensorView tensor(const nlohmann::json& batch, const std::string& name) const {
    return tensor(batch.at("name").get<std::string>() + "." + name);
  }
  const nlohmann::json& batches() const { return about_.at("cases"); }

  static model::ModelConfig config(const nlohmann::json& about, AttentionKind kind) {
    const nlohmann::json& theirs = about.at("config");
    const std::string name = about.at("model");
    return {
        .vocab_size = theirs.at("vocab_size"),
        .intermediate_size = theirs.at("intermediate_size"),
        .num_layers = theirs.at("num_hidden_layers"),
        .rms_norm = {.eps = theirs.at("rms_norm_eps")},
        .tie_word_embeddings = theirs.at("tie_word_embeddings"),
        .attention_kind = kind,
        .attention = {.hidden_size = theirs.at("hidden_size"),
                      .num_heads = theirs.at("num_attention_heads"),
                      .num_kv_heads = theirs.at("num_key_value_heads"),
                      .head_dim = theirs.at("head_dim"),
                      .qkv_bias = name == "Qwen2",
                      .qk_norm = name == "Qwen3",
                      .qk_norm_options = {.eps = theirs.at("rms_norm_eps")},
                      .sliding_window = theirs.value("sliding_window", std::int64_t{0}),
                      .rotary = rotary_config(theirs, theirs.at("rope_parameters"))},
    };
  }

  nlohmann::json about_;
  model::CausalLM model_;
};

// Logits of padding mean nothing: they become 0, as in the file.
void clear_padding(const TensorView& logits, const TensorView& mask) {
  for (std::int64_t b = 0; b < mask.size(0); ++b) {
    for (std::int64_t t = 0; t < mask.size(1); ++t) {
      if (mask.as<std::int32_t>()[b * mask.size(1) + t] == 0) {
        fill(logits.select(0, b).select(0, t), 0.0);
      }
    }
  }
}

TEST_P(Decoder, has_the_parameters_of_the_checkpoint) {
  std::size_t num_weights = 0;
  for (const auto& [name, weight] : file().tensors()) {
    num_weights += name.starts_with(about_.at("name").get<std::string>() + ".weight.");
  }
  std::size_t num_parameters = 0;
  model_.visit([&](const std::string& name, nn::Parameter& parameter) {
    EXPECT_EQ(parameter.value.shape(), tensor("weight." + name).shape) << name;
    ++num_parameters;
  });
  EXPECT_EQ(num_parameters, num_weights);
}

TEST_P(Decoder, logits_and_loss) {
  for (const nlohmann::json& batch : batches()) {
    const TensorView mask = tensor(batch, "attention_mask");
    const Tensor logits =
        model_.forward({.input_ids = tensor(batch, "input_ids"), .attention_mask = mask});
    const model::Loss loss =
        model::cross_entropy(logits, model::shift_labels(tensor(batch, "labels")));
    const double expected = batch.at("loss");
    EXPECT_NEAR(loss.mean, expected, kLoss * expected) << batch.at("name");
    clear_padding(logits, mask);
    expect_close(logits, tensor(batch, "logits"), kLogits, batch.at("name"));
  }
}

TEST_P(Decoder, every_gradient) {
  const std::string batch = about_.at("gradients_of");
  model::accumulate_gradients(model_,
                              {.input_ids = tensor(batch + ".input_ids"),
                               .attention_mask = tensor(batch + ".attention_mask"),
                               .position_ids = tensor(batch + ".position_ids")},
                              tensor(batch + ".labels"));
  model_.visit([&](const std::string& name, nn::Parameter& parameter) {
    expect_close(parameter.gradient, tensor("gradient." + name), kGradients, name);
  });
}

TEST_P(Decoder, greedy_tokens_through_every_cache) {
  const bool window = model_.config().attention.sliding_window > 0;
  for (const nlohmann::json& batch : batches()) {
    const TensorView prompts = tensor(batch, "input_ids"), mask = tensor(batch, "attention_mask");
    const Tensor expected = cast(tensor(batch, "tokens"), DType::int64);
    const std::int64_t length = expected.size(1);
    const auto expect_tokens = [&](nn::KVCaches* caches, std::string_view kind) {
      const Tensor tokens = model::generate(model_, prompts, mask, caches,
                                            {.max_new_tokens = length - prompts.size(1)});
      ASSERT_EQ(tokens.shape(), expected.shape());
      for (std::int64_t i = 0; i < tokens.numel(); ++i) {
        ASSERT_EQ(tokens.as<std::int64_t>()[i], expected.as<std::int64_t>()[i])
            << batch.at("name") << ", " << kind << " cache, row " << i / length << ", token "
            << i % length;
      }
    };
    expect_tokens(nullptr, "no");
    using enum model::CacheKind;
    for (const model::CacheKind kind : {dynamic_cache, static_cache, paged_cache, sliding_cache}) {
      if (kind == sliding_cache && !window) continue;
      nn::KVCaches caches = model::make_caches(model_.config(), kind, length);
      expect_tokens(&caches, model::cache_kind_name(kind));
    }
  }
}

TEST_P(Decoder, ten_steps_of_adamw) {
  const nlohmann::json& training = file().about().at("training");
  for (const nlohmann::json& batch : batches()) {
    model::CausalLM model(model_.config());
    model::copy_weights(model_, model);
    model::AdamW optimizer(model, {.learning_rate = training.at("learning_rate"),
                                   .beta1 = training.at("beta1"),
                                   .beta2 = training.at("beta2"),
                                   .eps = training.at("eps"),
                                   .weight_decay = training.at("weight_decay"),
                                   .max_gradient_norm = 0.0f});
    const model::ModelInputs inputs{.input_ids = tensor(batch, "input_ids"),
                                    .attention_mask = tensor(batch, "attention_mask"),
                                    .training = true};
    for (const double expected : batch.at("training_losses").get<std::vector<double>>()) {
      const double loss =
          model::training_step(model, optimizer, inputs, tensor(batch, "labels")).mean;
      EXPECT_NEAR(loss, expected, kTrainingLoss * expected) << optimizer.num_steps() << " steps";
    }
    if (batch.at("name") != about_.at("gradients_of")) continue;
    model.visit([&](const std::string& name, nn::Parameter& parameter) {
      if (name != "model.norm.weight") return;
      expect_close(parameter.value, tensor("trained." + name), kTrainedWeights, name);
    });
  }
}

std::string instance_name(const testing::TestParamInfo<Decoder::ParamType>& instance) {
  const auto& [index, kind] = instance.param;
  return descriptions()[index].at("name").get<std::string>() + "_" +
         std::string(model::attention_kind_name(kind));
}

INSTANTIATE_TEST_SUITE_P(truth, Decoder,
                         testing::Combine(testing::Range(std::size_t{0}, descriptions().size()),
                                          testing::Values(AttentionKind::plain,
                                                          AttentionKind::flash)),
                         instance_name);

}  // namespace
}  // namespace flashmha::truth
