// Training of a CausalLM: loss, optimiser, one step.
//
//   model::AdamW optimizer(model, {.learning_rate = 3e-4f});
//   model::TrainingStep step(model, optimizer);
//   for (...) double loss = step({.input_ids = ids}, ids).mean;
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "flashmha/graph.h"
#include "flashmha/model.h"

namespace flashmha::model {

inline constexpr std::int64_t kIgnoreIndex = -100;

// Targets of next-token prediction: targets[b, t] = labels[b, t + 1], and kIgnoreIndex for the last
// token of every row and, with `packed`, of every sequence. labels int32 or int64 [batch, seqlen];
// targets int64 [batch * seqlen].
Tensor shift_labels(const TensorView& labels, const PackedSequences* packed = nullptr);

struct Loss {
  double mean = 0.0;            // over the counted tokens, natural logarithm; 0 if there are none
  std::int64_t num_tokens = 0;  // with a target other than kIgnoreIndex
};

// Cross-entropy of logits [batch, seqlen, vocab_size] with targets int64 [batch * seqlen]. dlogits,
// if given, receives the gradient of scale * mean and may be logits itself.
Loss cross_entropy(const TensorView& logits, const TensorView& targets,
                   const TensorView& dlogits = {}, float scale = 1.0f);

struct OptimizerOptions {
  float learning_rate = 1e-3f;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float eps = 1e-8f;
  float weight_decay = 0.1f;       // of matrices; vectors (norms, biases, sinks) are not decayed
  float max_gradient_norm = 1.0f;  // 0: gradients are not clipped
};

// AdamW (Loshchilov & Hutter 2019) with float32 moments, and float32 master weights for 16-bit
// parameters. The model must outlive it. Throws invalid_argument for options out of range.
class AdamW {
 public:
  explicit AdamW(CausalLM& model, const OptimizerOptions& options = {});

  // Updates all parameters from their gradients, then zeroes the gradients. Parameters that have no
  // gradient are left alone. Returns the norm of the whole gradient before clipping. If that is not
  // finite nothing is changed, and the gradients are there to be looked at. On a GPU, steps after
  // the second are one launch of a graph.
  double step();

  void set_learning_rate(float learning_rate) { options_.learning_rate = learning_rate; }
  std::int64_t num_steps() const { return num_steps_; }

  // Everything but the parameters that the next step depends on is num_steps and these tensors:
  // "NAME.moment1", "NAME.moment2" and, for 16-bit parameters, "NAME.master", for every parameter
  // NAME in the model's order. Writing to them and resume() restore a state.
  void visit_state(const std::function<void(const std::string&, const TensorView&)>& visitor) const;
  // The next step counts as number num_steps + 1.
  void resume(std::int64_t num_steps) { num_steps_ = num_steps; }

 private:
  struct Slot {
    std::string name;
    nn::Parameter* parameter;
    Tensor moment1;
    Tensor moment2;
    Tensor master;  // defined for 16-bit parameters
  };

  // Those that have a gradient.
  std::vector<ops::AdamWState> states(bool matrices) const;
  void queue_step() const;

  OptimizerOptions options_;
  std::vector<Slot> slots_;
  Tensor norm_;      // float32 [1]
  Tensor schedule_;  // float32 [3]: see ops::AdamWStep
  Graph graph_;
  std::vector<const void*> graph_gradients_;  // that the graph reads
  std::int64_t num_steps_ = 0;
};

// The loss of the model's logits, with targets int64 [batch * seqlen] as of shift_labels.
Loss compute_loss(const CausalLM& model, const ModelInputs& inputs, const TensorView& targets);

// The same, and adds the gradients of scale * loss. The gradient of the mean over all tokens of
// several micro-batches needs scale = its share of their counted tokens for each of them.
Loss compute_gradients(CausalLM& model, const ModelInputs& inputs, const TensorView& targets,
                       float scale = 1.0f);

// compute_gradients with the targets of shift_labels.
Loss accumulate_gradients(CausalLM& model, const ModelInputs& inputs, const TensorView& labels,
                          float scale = 1.0f);

// accumulate_gradients and one step of the optimiser; the loss is the one before the step.
Loss training_step(CausalLM& model, AdamW& optimizer, const ModelInputs& inputs,
                   const TensorView& labels);

// compute_gradients again and again. On a GPU, batches of one shape are recorded as a graph, from
// the third on one launch each; what differs in other ways than by its numbers (another shape, more
// packed sequences than ever before) is recorded anew. Batches with a mask, with positions of their
// own or with dropout, packed ones with plain attention, and models with dynamic rotary scaling are
// computed as always.
class GradientPass {
 public:
  // The model must outlive it.
  explicit GradientPass(CausalLM& model);
  ~GradientPass();
  GradientPass(GradientPass&&) noexcept;
  GradientPass& operator=(GradientPass&&) noexcept;

  Loss operator()(const ModelInputs& inputs, const TensorView& targets, float scale = 1.0f);

 private:
  struct Recording;

  CausalLM* model_;
  std::unique_ptr<Recording> recording_;
};

// training_step again and again, with graphs as GradientPass and AdamW make them.
class TrainingStep {
 public:
  // Both must outlive it.
  TrainingStep(CausalLM& model, AdamW& optimizer) : gradients_(model), optimizer_(&optimizer) {}

  Loss operator()(const ModelInputs& inputs, const TensorView& labels);

 private:
  GradientPass gradients_;
  AdamW* optimizer_;
};

}  // namespace flashmha::model
