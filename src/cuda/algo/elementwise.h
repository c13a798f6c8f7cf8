// Elementwise copies on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "flashmha/tensor.h"

namespace flashmha::cuda {

// Both tensors on the current device, of one shape with elements; converts like flashmha::copy.
cudaError_t copy_elements(const TensorView& source, const TensorView& destination,
                          cudaStream_t stream);
cudaError_t fill_elements(const TensorView& destination, double value, cudaStream_t stream);

}  // namespace flashmha::cuda
