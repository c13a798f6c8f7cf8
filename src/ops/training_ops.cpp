// Checks and dispatch: loss, gradient norm, optimiser.
#include <cmath>

#include "ops/rules.h"

namespace flashmha::ops {
namespace {

void check_loss(std::string_view function, const TensorView& logits,
                const CrossEntropySaved& saved) {
  require_floating(function, {{"logits", logits}});
  require_rows(function, {{"logits", logits}});
  check(logits.rank() == 2 && logits.size(1) > 0, "[{}] logits must be [rows,vocabulary]; got {}",
        function, logits);
  require_index(function, {"targets", saved.targets});
  require_shape(function, {"targets", saved.targets}, {logits.size(0)});
  require_dtype(function, {"lse", saved.lse}, DType::float32);
  require_shape(function, {"lse", saved.lse}, {logits.size(0)});
  require_contiguous(function, {"lse", saved.lse});
  require_dtype(function, {"loss", saved.loss}, DType::float32);
  require_shape(function, {"loss", saved.loss}, {2});
  require_contiguous(function, {"loss", saved.loss});
}

}  // namespace

void cross_entropy(const TensorView& logits, const TensorView& targets, std::int64_t ignore_index,
                   const TensorView& loss, const TensorView& lse, Stream stream) {
  check_loss("cross_entropy", logits, {.targets = targets, .lse = lse, .loss = loss});
  backend("cross_entropy", {{"logits", logits}, {"targets", targets}, {"loss", loss}, {"lse", lse}})
      .cross_entropy(logits, targets, ignore_index, loss, lse, stream);
}

void cross_entropy_backward(const TensorView& logits, const CrossEntropySaved& saved,
                            const TensorView& dlogits, Stream stream) {
  check_loss("cross_entropy_backward", logits, saved);
  if (saved.scale.defined()) {
    require_dtype("cross_entropy_backward", {"scale", saved.scale}, DType::float32);
    require_shape("cross_entropy_backward", {"scale", saved.scale}, {1});
  }
  require_floating("cross_entropy_backward", {{"dlogits", dlogits}});
  require_rows("cross_entropy_backward", {{"dlogits", dlogits}});
  require_shape("cross_entropy_backward", {"dlogits", dlogits}, logits.shape);
  const OpsTable& table = backend("cross_entropy_backward", {{"logits", logits},
                                                             {"targets", saved.targets},
                                                             {"loss", saved.loss},
                                                             {"lse", saved.lse},
                                                             {"dlogits", dlogits}});
  if (logits.numel() > 0) table.cross_entropy_backward(logits, saved, dlogits, stream);
}

void gradient_norm(std::span<const TensorView> gradients, const TensorView& norm, Stream stream) {
  require_dtype("gradient_norm", {"norm", norm}, DType::float32);
  require_shape("gradient_norm", {"norm", norm}, {1});
  for (const TensorView& gradient : gradients) {
    require_dtype("gradient_norm", {"gradient", gradient}, DType::float32);
    require_contiguous("gradient_norm", {"gradient", gradient});
    (void)backend("gradient_norm", {{"norm", norm}, {"gradient", gradient}});
  }
  backend("gradient_norm", {{"norm", norm}}).gradient_norm(gradients, norm, stream);
}

namespace {

void check_state(const AdamWState& state) {
  require_floating("adamw", {{"parameter", state.parameter}});
  require_contiguous("adamw", {"parameter", state.parameter});
  const bool narrow = state.parameter.dtype != DType::float32;
  check(state.master.defined() == narrow,
        "[adamw] master must be given for 16-bit parameters and only for them; got parameter {} "
        "and master {}",
        state.parameter, state.master);
  for (const Named& tensor : {Named{"gradient", state.gradient}, Named{"moment1", state.moment1},
                              Named{"moment2", state.moment2}, Named{"master", state.master}}) {
    if (tensor.name == "master" && !narrow) continue;
    require_dtype("adamw", tensor, DType::float32);
    require_shape("adamw", tensor, state.parameter.shape);
    require_contiguous("adamw", tensor);
  }
}

}  // namespace

std::array<float, 3> adamw_schedule(const AdamWOptions& options, float learning_rate,
                                    std::int64_t step) {
  check(step >= 1, "[adamw_schedule] step ({}) counts from 1", step);
  const auto correction = [&](float beta) {
    return static_cast<float>(1.0 / (1.0 - std::pow(double{beta}, static_cast<double>(step))));
  };
  return {learning_rate, correction(options.beta1), correction(options.beta2)};
}

void adamw(std::span<const AdamWState> states, const AdamWStep& step, const AdamWOptions& options,
           Stream stream) {
  check(options.beta1 >= 0.0f && options.beta1 < 1.0f && options.beta2 >= 0.0f &&
            options.beta2 < 1.0f,
        "[adamw] beta1 ({}) and beta2 ({}) must be in [0, 1)", options.beta1, options.beta2);
  const Named schedule{"schedule", step.schedule};
  const Named gradient_norm{"gradient_norm", step.gradient_norm};
  require_dtype("adamw", schedule, DType::float32);
  require_shape("adamw", schedule, {3});
  require_contiguous("adamw", schedule);
  check(step.gradient_norm.defined() || options.max_gradient_norm == 0.0f,
        "[adamw] max_gradient_norm ({}) needs gradient_norm", options.max_gradient_norm);
  if (step.gradient_norm.defined()) {
    require_dtype("adamw", gradient_norm, DType::float32);
    require_shape("adamw", gradient_norm, {1});
  }
  const OpsTable* table = nullptr;
  for (const AdamWState& state : states) {
    check_state(state);
    table = &backend("adamw", {{"parameter", state.parameter},
                               {"parameter", states.front().parameter},
                               {"gradient", state.gradient},
                               {"moment1", state.moment1},
                               {"moment2", state.moment2},
                               {"master", state.master},
                               schedule,
                               gradient_norm});
  }
  if (table != nullptr) table->adamw(states, step, options, stream);
}

}  // namespace flashmha::ops
