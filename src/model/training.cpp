// Loss, AdamW and a training step.
#include "flashmha/training.h"

#include <cmath>
#include <utility>

#include "core/check.h"
#include "core/format.h"
#include "core/located.h"
#include "model/loss.h"

namespace flashmha::model {

Tensor shift_labels(const TensorView& labels, const PackedSequences* packed) {
  check(labels.rank() == 2 && (labels.dtype == DType::int32 || labels.dtype == DType::int64),
        "[shift_labels] labels must be int32 or int64 [batch, seqlen]; got {}", labels);
  const std::int64_t seqlen = labels.size(1);
  Tensor targets = Tensor::empty(labels.shape, DType::int64, labels.device);
  fill(targets, static_cast<double>(kIgnoreIndex));
  if (seqlen > 1) copy(labels.slice(1, 1, seqlen), targets.view().slice(1, 0, seqlen - 1));
  const TensorView flat = targets.view().reshape({-1});
  if (packed) {
    const Located starts(packed->cu_seqlens);
    for (std::int64_t i = 1; i < packed->cu_seqlens.numel(); ++i) {
      const std::int64_t end = starts.as<std::int32_t>()[i];
      if (end > 0) fill(flat.slice(0, end - 1, end), static_cast<double>(kIgnoreIndex));
    }
  }
  return Tensor::adopt(flat, std::make_shared<Tensor>(std::move(targets)));
}

namespace {

// Mean and count into loss; targets and scale are where the logits are.
void queue_cross_entropy(const TensorView& logits, const TensorView& targets,
                         const TensorView& dlogits, const TensorView& scale,
                         const TensorView& loss) {
  const TensorView rows = logits.reshape({-1, logits.size(-1)});
  const Tensor lse = Tensor::empty({rows.size(0)}, DType::float32, logits.device);
  ops::cross_entropy(rows, targets, kIgnoreIndex, loss, lse);
  if (dlogits.defined()) {
    const ops::CrossEntropySaved saved{
        .targets = targets, .lse = lse, .loss = loss, .ignore_index = kIgnoreIndex, .scale = scale};
    ops::cross_entropy_backward(rows, saved, dlogits.reshape(rows.shape));
  }
}

}  // namespace

Tensor empty_loss(Device device) {
  return Tensor::empty({2}, DType::float32, device);
}

Loss read_loss(const TensorView& loss) {
  const Located host(loss);
  const auto* values = host.as<float>();
  return {.mean = values[0], .num_tokens = std::int64_t(values[1])};
}

void queue_gradients(CausalLM& model, const ModelInputs& inputs, const TensorView& targets,
                     const TensorView& scale, const TensorView& loss) {
  CausalLM::Saved saved;
  const Tensor logits = model.forward(inputs, &saved);
  queue_cross_entropy(logits, targets, /*dlogits=*/logits, scale, loss);
  model.backward(logits, inputs, std::move(saved));
}

Loss cross_entropy(const TensorView& logits, const TensorView& targets, const TensorView& dlogits,
                   float scale) {
  const Tensor loss = empty_loss(logits.device);
  queue_cross_entropy(logits, Located(targets, logits.device), dlogits,
                      Located(view_of(&scale, {1}), logits.device), loss);
  return read_loss(loss);
}

AdamW::AdamW(CausalLM& model, const OptimizerOptions& options)
    : options_(options),
      norm_(Tensor::zeros({1}, DType::float32, model.config().device)),
      schedule_(Tensor::zeros({3}, DType::float32, model.config().device)),
      graph_(model.config().device) {
  check(options.beta1 >= 0.0f && options.beta1 < 1.0f && options.beta2 >= 0.0f &&
            options.beta2 < 1.0f,
        "[AdamW] beta1 ({}) and beta2 ({}) must be in [0, 1)", options.beta1, options.beta2);
  check(options.eps > 0.0f && options.weight_decay >= 0.0f && options.max_gradient_norm >= 0.0f,
        "[AdamW] eps ({}) must be positive, weight_decay ({}) and max_gradient_norm ({}) not "
        "negative",
        options.eps, options.weight_decay, options.max_gradient_norm);
  model.visit([&](const std::string& name, nn::Parameter& parameter) {
    const Tensor& value = parameter.value;
    slots_.push_back(
        {.name = name,
         .parameter = &parameter,
         .moment1 = Tensor::zeros(value.shape(), DType::float32, value.device()),
         .moment2 = Tensor::zeros(value.shape(), DType::float32, value.device()),
         .master = value.dtype() == DType::float32 ? Tensor() : cast(value, DType::float32)});
  });
}

std::vector<ops::AdamWState> AdamW::states(bool matrices) const {
  std::vector<ops::AdamWState> states;
  for (const Slot& slot : slots_) {
    const nn::Parameter& parameter = *slot.parameter;
    if (!parameter.gradient.defined()) continue;
    if ((parameter.value.view().rank() >= 2) != matrices) continue;
    states.push_back({.parameter = parameter.value,
                      .gradient = parameter.gradient,
                      .moment1 = slot.moment1,
                      .moment2 = slot.moment2,
                      .master = slot.master});
  }
  return states;
}

void AdamW::queue_step() const {
  std::vector<TensorView> gradients;
  for (const Slot& slot : slots_) {
    if (slot.parameter->gradient.defined()) gradients.push_back(slot.parameter->gradient);
  }
  ops::gradient_norm(gradients, norm_);
  for (const bool matrices : {true, false}) {
    ops::adamw(states(matrices), {.schedule = schedule_, .gradient_norm = norm_},
               {.beta1 = options_.beta1,
                .beta2 = options_.beta2,
                .eps = options_.eps,
                .weight_decay = matrices ? options_.weight_decay : 0.0f,
                .max_gradient_norm = options_.max_gradient_norm});
  }
}

double AdamW::step() {
  const auto schedule = ops::adamw_schedule({.beta1 = options_.beta1, .beta2 = options_.beta2},
                                            options_.learning_rate, num_steps_ + 1);
  copy(view_of(schedule.data(), {3}), schedule_);
  std::vector<const void*> gradients;
  for (const Slot& slot : slots_)
    gradients.push_back(slot.parameter->gradient.view().data);
  if (gradients != graph_gradients_) graph_.reset();
  graph_gradients_ = std::move(gradients);
  graph_.run([this] { queue_step(); });
  const double norm = *Located(norm_).as<float>();
  if (std::isfinite(norm)) ++num_steps_;
  return norm;
}

void AdamW::visit_state(
    const std::function<void(const std::string&, const TensorView&)>& visitor) const {
  for (const Slot& slot : slots_) {
    visitor(slot.name + ".moment1", slot.moment1);
    visitor(slot.name + ".moment2", slot.moment2);
    if (slot.master.defined()) visitor(slot.name + ".master", slot.master);
  }
}

Loss compute_loss(const CausalLM& model, const ModelInputs& inputs, const TensorView& targets) {
  return cross_entropy(model.forward(inputs), targets);
}

Loss compute_gradients(CausalLM& model, const ModelInputs& inputs, const TensorView& targets,
                       float scale) {
  const Device device = model.config().device;
  const Tensor loss = empty_loss(device);
  queue_gradients(model, inputs, Located(targets, device), Located(view_of(&scale, {1}), device),
                  loss);
  return read_loss(loss);
}

namespace {

// The targets of next-token prediction for a batch.
Tensor targets_of(const ModelInputs& inputs, const TensorView& labels) {
  check(labels.shape == inputs.input_ids.shape,
        "[accumulate_gradients] labels must have the shape of input_ids; got {} and {}", labels,
        inputs.input_ids);
  return shift_labels(labels, inputs.packed);
}

}  // namespace

Loss accumulate_gradients(CausalLM& model, const ModelInputs& inputs, const TensorView& labels,
                          float scale) {
  return compute_gradients(model, inputs, targets_of(inputs, labels), scale);
}

Loss training_step(CausalLM& model, AdamW& optimizer, const ModelInputs& inputs,
                   const TensorView& labels) {
  return TrainingStep(model, optimizer)(inputs, labels);
}

Loss TrainingStep::operator()(const ModelInputs& inputs, const TensorView& labels) {
  const Loss loss = gradients_(inputs, targets_of(inputs, labels));
  optimizer_->step();
  return loss;
}

}  // namespace flashmha::model
