// The seam between the host's part of the forward (forward.cpp) and the instances of the kernel.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/sm80/forward_params.h"

namespace flashmha::cuda {

// Queues the kernel. seqlen_q: of the longest sequence, at least 1.
template <class T, int head_dim, bool general>
cudaError_t launch_forward(const ForwardParams& params, std::int64_t seqlen_q, cudaStream_t stream);

}  // namespace flashmha::cuda
