// Tiny decoders of Transformers (checkpoints/, made by make_checkpoints.py), loaded as users load
// theirs: logits, loss, every gradient, greedy and beam-searched tokens through every cache, ten
// steps of training; plain and flash attention.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "flashmha/checkpoint.h"
#include "flashmha/generation.h"
#include "flashmha/training.h"
#include "tests/truth/compare.h"
#include "tests/truth/safetensors.h"

namespace flashmha::truth {
namespace {

using model::AttentionKind;
using model::CacheKind;

// Largest accepted distances (compare.h) of float32, a few times the largest ones that were seen.
constexpr double kLogits = 1e-5;
constexpr double kLoss = 1e-6;
constexpr double kGradients = 1e-5;
constexpr double kTrainingLoss = 2e-5;
constexpr double kTrainedWeights = 1e-4;
constexpr double kBeamScores = 1e-5;

std::string folder(const std::string& checkpoint) {
  return std::string(FLASHMHA_TESTS_DIR) + "/truth/checkpoints/" + checkpoint;
}

class Checkpoint : public testing::TestWithParam<std::tuple<const char*, AttentionKind>> {
 protected:
  Checkpoint()
      : answers_(folder(name()) + "/answers.safetensors"),
        model_(model::load_pretrained(
            folder(name()), {.dtype = DType::float32, .attention_kind = std::get<1>(GetParam())})) {
  }

  static std::string name() { return std::get<0>(GetParam()); }
  TensorView tensor(const std::string& name) const { return answers_.get(name); }
  TensorView tensor(const nlohmann::json& batch, const std::string& name) const {
    return tensor(batch.at("name").get<std::string>() + "." + name);
  }
  const nlohmann::json& about() const { return answers_.about(); }
  const nlohmann::json& batches() const { return about().at("cases"); }

  // The caches that this model can have.
  std::vector<CacheKind> cache_kinds() const {
    using enum CacheKind;
    std::vector<CacheKind> kinds = {dynamic_cache, static_cache, paged_cache};
    if (model_->config().has_sliding_window()) kinds.push_back(sliding_cache);
    return kinds;
  }

  File answers_;
  std::unique_ptr<model::CausalLM> model_;
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

// Rows of x [batch, seqlen, ...] that are padded on the left, padded on the right. mask is x's.
Tensor pad_right(const TensorView& x, const TensorView& mask) {
  Tensor moved = clone(x);
  const std::int64_t seqlen = mask.size(1);
  for (std::int64_t b = 0; b < mask.size(0); ++b) {
    std::int64_t pads = 0;
    while (pads < seqlen && mask.select(0, b).as<std::int32_t>()[pads] == 0)
      ++pads;
    const TensorView from = x.select(0, b), to = moved.view().select(0, b);
    copy(from.slice(0, pads, seqlen), to.slice(0, 0, seqlen - pads));
    copy(from.slice(0, 0, pads), to.slice(0, seqlen - pads, seqlen));
  }
  return moved;
}

void expect_tokens(const Tensor& tokens, const Tensor& expected, const std::string& what) {
  ASSERT_EQ(tokens.shape(), expected.shape()) << what;
  for (std::int64_t i = 0; i < tokens.numel(); ++i) {
    ASSERT_EQ(tokens.as<std::int64_t>()[i], expected.as<std::int64_t>()[i])
        << what << ", row " << i / tokens.size(1) << ", token " << i % tokens.size(1);
  }
}

TEST_P(Checkpoint, logits_and_loss) {
  for (const nlohmann::json& batch : batches()) {
    const TensorView mask = tensor(batch, "attention_mask");
    const Tensor logits =
        model_->forward({.input_ids = tensor(batch, "input_ids"), .attention_mask = mask});
    const model::Loss loss =
        model::cross_entropy(logits, model::shift_labels(tensor(batch, "labels")));
    const double expected = batch.at("loss");
    EXPECT_NEAR(loss.mean, expected, kLoss * expected) << batch.at("name");
    clear_padding(logits, mask);
    expect_close(logits, tensor(batch, "logits"), kLogits, batch.at("name"));
  }
}

TEST_P(Checkpoint, logits_with_padding_on_the_right) {
  const std::string batch = about().at("gradients_of");
  const TensorView left = tensor(batch + ".attention_mask");
  const Tensor mask = pad_right(left, left);
  const Tensor logits = model_->forward(
      {.input_ids = pad_right(tensor(batch + ".input_ids"), left), .attention_mask = mask});
  clear_padding(logits, mask);
  expect_close(logits, pad_right(tensor(batch + ".logits"), left), kLogits, batch);
}

// The real tokens of both rows one after the other, without padding.
TEST_P(Checkpoint, logits_of_packed_sequences) {
  const std::string batch = about().at("gradients_of");
  const TensorView mask = tensor(batch + ".attention_mask");
  std::vector<std::int32_t> ids, cu_seqlens = {0};
  for (std::int64_t b = 0; b < mask.size(0); ++b) {
    for (std::int64_t t = 0; t < mask.size(1); ++t) {
      if (mask.as<std::int32_t>()[b * mask.size(1) + t] == 0) continue;
      ids.push_back(tensor(batch + ".input_ids").as<std::int32_t>()[b * mask.size(1) + t]);
    }
    cu_seqlens.push_back(static_cast<std::int32_t>(ids.size()));
  }
  const auto total = static_cast<std::int64_t>(ids.size());
  const PackedSequences packed{
      .cu_seqlens = Tensor::from(std::span<const std::int32_t>(cu_seqlens), {mask.size(0) + 1})};
  const Tensor input_ids = Tensor::from(std::span<const std::int32_t>(ids), {1, total});
  const Tensor logits = model_->forward({.input_ids = input_ids, .packed = &packed});
  for (std::int64_t b = 0; b < mask.size(0); ++b) {
    const std::int64_t begin = cu_seqlens[static_cast<std::size_t>(b)];
    const std::int64_t end = cu_seqlens[static_cast<std::size_t>(b) + 1];
    const TensorView expected = tensor(batch + ".logits").select(0, b);
    expect_close(clone(logits.view().select(0, 0).slice(0, begin, end)),
                 clone(expected.slice(0, mask.size(1) - (end - begin), mask.size(1))), kLogits,
                 "sequence " + std::to_string(b));
  }
}

TEST_P(Checkpoint, every_gradient) {
  const std::string batch = about().at("gradients_of");
  model::accumulate_gradients(*model_,
                              {.input_ids = tensor(batch + ".input_ids"),
                               .attention_mask = tensor(batch + ".attention_mask"),
                               .position_ids = tensor(batch + ".position_ids")},
                              tensor(batch + ".labels"));
  std::size_t num_gradients = 0;
  model_->visit([&](const std::string& name, nn::Parameter& parameter) {
    expect_close(parameter.gradient, tensor("gradient." + name), kGradients, name);
    ++num_gradients;
  });
  for (const auto& [name, gradient] : answers_.tensors())
    num_gradients -= name.starts_with("gradient.");
  EXPECT_EQ(num_gradients, 0u);
}

TEST_P(Checkpoint, greedy_tokens_through_every_cache) {
  for (const nlohmann::json& batch : batches()) {
    const TensorView prompts = tensor(batch, "input_ids"), mask = tensor(batch, "attention_mask");
    const Tensor expected = cast(tensor(batch, "tokens"), DType::int64);
    const std::int64_t length = expected.size(1);
    const auto expect_greedy = [&](nn::KVCaches* caches, std::string_view kind) {
      const Tensor tokens = model::generate(*model_, prompts, mask, caches,
                                            {.max_new_tokens = length - prompts.size(1)});
      expect_tokens(tokens, expected,
                    batch.at("name").get<std::string>() + ", cache: " + std::string(kind));
    };
    expect_greedy(nullptr, "none");
    for (const CacheKind kind : cache_kinds()) {
      nn::KVCaches caches = model::make_caches(model_->config(), kind, length);
      expect_greedy(&caches, model::cache_kind_name(kind));
    }
  }
}

// Transformers fills up with the end token what ends earlier than the longest result.
TEST_P(Checkpoint, beam_search_through_every_cache) {
  const std::string batch = about().at("gradients_of");
  const TensorView input_ids = tensor(batch + ".input_ids"),
                   mask = tensor(batch + ".attention_mask");
  std::vector<std::vector<std::int64_t>> prompts;
  for (std::int64_t b = 0; b < mask.size(0); ++b) {
    prompts.emplace_back();
    for (std::int64_t t = 0; t < mask.size(1); ++t) {
      const std::int64_t i = b * mask.size(1) + t;
      if (mask.as<std::int32_t>()[i] != 0)
        prompts.back().push_back(input_ids.as<std::int32_t>()[i]);
    }
  }
  for (std::size_t index = 0; index < about().at("beams").size(); ++index) {
    const nlohmann::json& settings = about().at("beams").at(index);
    model::GenerationOptions options{.max_new_tokens = settings.at("max_new_tokens"),
                                     .num_return_sequences = settings.at("num_beams"),
                                     .num_beams = settings.at("num_beams"),
                                     .length_penalty = settings.at("length_penalty"),
                                     .early_stopping = settings.at("early_stopping")
                                                           ? model::EarlyStopping::when_found
                                                           : model::EarlyStopping::heuristic};
    if (!settings.at("eos_token_id").is_null()) {
      options.stop_token_ids = {settings.at("eos_token_id").get<std::int64_t>()};
    }
    const std::string beam = "beam" + std::to_string(index);
    const Tensor expected = cast(tensor(beam + ".tokens"), DType::int64);
    const Tensor scores = cast(tensor(beam + ".scores"), DType::float64);
    for (const CacheKind kind : cache_kinds()) {
      options.cache = kind;
      const std::vector<model::Generated> found = model::generate(*model_, prompts, options);
      ASSERT_EQ(static_cast<std::int64_t>(found.size()), expected.size(0));
      for (std::size_t row = 0; row < found.size(); ++row) {
        const auto* first =
            expected.as<std::int64_t>() + static_cast<std::int64_t>(row) * expected.size(1);
        const std::vector<std::int64_t> truth(first + mask.size(1), first + expected.size(1));
        std::vector<std::int64_t> tokens = found[row].tokens;
        tokens.resize(truth.size(), tokens.back());
        EXPECT_EQ(tokens, truth) << beam << ", " << model::cache_kind_name(kind) << ", row " << row;
        EXPECT_NEAR(found[row].score, scores.as<double>()[row], kBeamScores) << beam;
      }
    }
  }
}

TEST_P(Checkpoint, ten_steps_of_adamw) {
  const nlohmann::json& training = about().at("training");
  for (const nlohmann::json& batch : batches()) {
    model::CausalLM model(model_->config());
    model::copy_weights(*model_, model);
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
    if (batch.at("name") != about().at("gradients_of")) continue;
    model.visit([&](const std::string& name, nn::Parameter& parameter) {
      if (name != "model.norm.weight") return;
      expect_close(parameter.value, tensor("trained." + name), kTrainedWeights, name);
    });
  }
}

std::string instance_name(const testing::TestParamInfo<Checkpoint::ParamType>& instance) {
  const auto& [name, kind] = instance.param;
  return std::string(name) + "_" + std::string(model::attention_kind_name(kind));
}

INSTANTIATE_TEST_SUITE_P(
    truth, Checkpoint,
    testing::Combine(testing::Values("llama2", "llama3", "llama_biases", "mistral", "qwen2",
                                     "qwen3", "gemma2", "gemma3"),
                     testing::Values(AttentionKind::plain, AttentionKind::flash)),
    instance_name);

}  // namespace
}  // namespace flashmha::truth
