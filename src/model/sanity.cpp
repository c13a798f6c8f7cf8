// Plain against flash attention on a whole model: the rules, and the dense batch.
#include "flashmha/sanity.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "core/check.h"
#include "core/located.h"
#include "flashmha/random.h"
#include "flashmha/training.h"
#include "model/sanity_rules.h"

namespace flashmha::model {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Gradients = std::map<std::string, TensorView>;

Gradients gradients_of(CausalLM& model) {
  Gradients gradients;
  model.visit([&](const std::string& name, nn::Parameter& parameter) {
    gradients[name] = parameter.gradient_sum();
  });
  return gradients;
}

// All gradients in one line: the tensor whose error is largest. What 16 bits do to the gradients of
// a model shows in all of its tensors together; a single small one may be off by little in the
// plain model by luck. So the tolerance comes from plain's largest error of any tensor.
Check judge_gradients(std::string name, ModelTrio& models, double slack) {
  const Gradients flash = gradients_of(models.flash);
  const Gradients plain = gradients_of(models.plain);
  Check worst{.name = std::move(name)};
  double plain_error = 0.0;
  std::string worst_tensor;
  for (const auto& [tensor, reference] : gradients_of(models.reference)) {
    plain_error = std::max(plain_error, relative_error(plain.at(tensor), reference));
    const double error = relative_error(flash.at(tensor), reference);
    if (worst_tensor.empty() || !(error <= worst.error)) {
      worst.error = error;
      worst_tensor = tensor;
    }
  }
  worst.tolerance = slack * plain_error + rounding_floor(models.flash.config().dtype);
  worst.detail = fmt::format("{} tensors, largest error: {}", flash.size(), worst_tensor);
  return worst;
}

ModelConfig with_kind(ModelConfig config, AttentionKind kind) {
  config.attention_kind = kind;
  return config;
}

// On the CPU in any case.
ModelConfig reference_config(ModelConfig config) {
  config.dtype = DType::float32;
  config.device = {};
  return with_kind(config, AttentionKind::plain);
}

}  // namespace

double relative_error(const TensorView& actual, const TensorView& expected) {
  check(actual.shape == expected.shape, "[relative_error] shapes must be equal; got {} and {}",
        to_string(actual), to_string(expected));
  const Tensor got = cast(Located(actual), DType::float32);
  const Tensor want = cast(Located(expected), DType::float32);
  double largest = 0.0;
  double difference = 0.0;
  for (std::int64_t i = 0; i < want.numel(); ++i) {
    const double a = got.as<float>()[i];
    const double b = want.as<float>()[i];
    if (!std::isfinite(a) || !std::isfinite(b)) {
      const bool same = a == b || (std::isnan(a) && std::isnan(b));
      if (!same) return kInfinity;
      continue;
    }
    largest = std::max(largest, std::abs(b));
    difference = std::max(difference, std::abs(a - b));
  }
  return largest > 0.0 ? difference / largest : difference;
}

double rounding_floor(DType dtype) {
  switch (dtype) {
    case DType::bfloat16: return 0x1p-9;
    case DType::float16: return 0x1p-12;
    default: return 2e-5;
  }
}

Check judge(std::string name, const Outcome& outcome, DType dtype, double slack) {
  return {.name = std::move(name),
          .detail = {},
          .error = relative_error(outcome.flash, outcome.reference),
          .tolerance =
              slack * relative_error(outcome.plain, outcome.reference) + rounding_floor(dtype)};
}

void check_training(const std::string& suffix, ModelTrio& models, const ModelInputs& inputs,
                    const TensorView& labels, double slack, const CheckReport& report) {
  std::array<float, 3> losses{};
  std::size_t index = 0;
  for (CausalLM* model : {&models.flash, &models.plain, &models.reference}) {
    model->zero_gradients();
    losses[index++] = static_cast<float>(accumulate_gradients(*model, inputs, labels).mean);
  }
  report(judge("loss" + suffix,
               {view_of(&losses[0], {1}), view_of(&losses[1], {1}), view_of(&losses[2], {1})},
               models.flash.config().dtype, slack));
  report(judge_gradients("gradients" + suffix, models, slack));
}

Tensor random_ids(const ModelTrio& models, std::int64_t batch, std::int64_t seqlen,
                  std::uint64_t seed) {
  Tensor ids = Tensor::empty({batch, seqlen}, DType::int64);
  fill_integers(ids, seed, models.flash.config().vocab_size);
  return ids;
}

ModelTrio::ModelTrio(const ModelConfig& config, std::uint64_t seed)
    : flash(with_kind(config, AttentionKind::flash)),
      plain(with_kind(config, AttentionKind::plain)),
      reference(reference_config(config)) {
  flash.init_weights(seed);
  copy_weights(flash, plain);
  copy_weights(flash, reference);
}

void check_dense(ModelTrio& models, const SanityOptions& options, const CheckReport& report) {
  const Tensor ids = random_ids(models, options.batch, options.seqlen, options.seed);
  const ModelInputs inputs{.input_ids = ids};
  const Tensor flash = models.flash.forward(inputs);
  const Tensor plain = models.plain.forward(inputs);
  const Tensor reference = models.reference.forward(inputs);
  report(judge("logits", {flash, plain, reference}, models.flash.config().dtype, options.slack));
  check_training("", models, inputs, ids, options.slack, report);
}

void check_model(ModelTrio& models, const SanityOptions& options, const CheckReport& report) {
  check_dense(models, options, report);
  check_padding(models, options, report);
  check_caches(models, options, report);
}

}  // namespace flashmha::model
