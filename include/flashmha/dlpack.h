// Exchange of tensors with other libraries through DLPack (https://dmlc.github.io/dlpack), without
// copying. Include <dlpack/dlpack.h> yourself to look inside a DLManagedTensor.
#pragma once

#include "flashmha/tensor.h"

extern "C" {
struct DLManagedTensor;
}

namespace flashmha {

// Takes over a tensor of another library; its deleter runs when the result is destroyed. Throws
// invalid_argument (and leaves `source` with the caller) if device, element type or rank are
// unknown.
Tensor from_dlpack(DLManagedTensor* source);

// Hands a tensor over; the receiver must call the deleter of the result exactly once.
DLManagedTensor* to_dlpack(Tensor tensor);

}  // namespace flashmha
