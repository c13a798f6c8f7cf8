// Training of a CausalLM: loss, optimiser, one step.
//
//   model::AdamW optimizer(model, {.learning_rate = 3e-4f});
//   for (...) double loss = model::training_step(model, optimizer, {.input_ids = ids}, ids);
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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
// parameters. The model must outlive it.
class AdamW {
 public:
  explicit AdamW(CausalLM& model, const OptimizerOptions& options = {});

  // Updates all parameters from their gradients, then zeroes the gradients. Parameters that have no
  // gradient are left alone. Returns the norm of the whole gradient before clipping.
  double step();

  void set_learning_rate(float learning_rate) { options_.learning_rate = learning_rate; }
  std::int64_t num_steps() const { return num_steps_; }

 private:
  struct Slot {
    nn::Parameter* parameter;
    Tensor moment1;
    Tensor moment2;
    Tensor master;  // defined for 16-bit parameters
  };

  OptimizerOptions options_;
  std::vector<Slot> slots_;
  Tensor norm_;  // float32 [1]
  std::int64_t num_steps_ = 0;
};

// Forward, loss and backward: adds the gradients of scale * loss. Accumulate over micro-batches
// with scale = 1 / number of them.
Loss accumulate_gradients(CausalLM& model, const ModelInputs& inputs, const TensorView& labels,
                          float scale = 1.0f);

// accumulate_gradients and one step of the optimiser; the loss is the one before the step.
Loss training_step(CausalLM& model, AdamW& optimizer, const ModelInputs& inputs,
                   const TensorView& labels);

}  // namespace flashmha::model
