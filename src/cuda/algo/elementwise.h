// Elementwise copies on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "flashmha/tensor.h"

namespace flashmha::cuda {

// Both tensors on the current device, of one shape with elements; converts like flashmha::copy.
cudaError_t copy_elements(const TensorView& source, const TensorView& destination,
                          cudaStream_t stream);
// Bytes of the host that travel as a kernel's parameter: the host waits for nothing, and may change
// them afterwards. At most kMostBytesByValue.
inline constexpr std::size_t kMostBytesByValue = 2048;
cudaError_t write_bytes(const void* source, void* destination, std::size_t bytes,
                        cudaStream_t stream);
cudaError_t fill_elements(const TensorView& destination, double value, cudaStream_t stream);

}  // namespace flashmha::cuda
