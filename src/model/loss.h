// The loss of a batch as work for a queue, and as numbers of the host.
#pragma once

#include "flashmha/training.h"

namespace flashmha::model {

// float32 [2]: the mean over the counted tokens, and their number.
Tensor empty_loss(Device device);
// Waits for it.
Loss read_loss(const TensorView& loss);

// Forward, loss, and the gradients of scale * loss, added up in the parameters. targets int64
// [batch * seqlen] and scale float32 [1] are on the model's device, as loss is.
void queue_gradients(CausalLM& model, const ModelInputs& inputs, const TensorView& targets,
                     const TensorView& scale, const TensorView& loss);

}  // namespace flashmha::model
