// Starting kernels, and saying which one could not be started.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "flashmha/plan.h"

namespace flashmha::cuda {

// What a kernel was started with, and whether that went well.
struct Launch {
  cudaError_t error = cudaSuccess;
  const char* kernel = "";
  std::int64_t num_blocks = 0;
  int num_threads = 0;
  int shared_bytes = 0;
};

// Throws Error(device) that names the call, the kernel with its geometry and the problem, unless it
// was started. With FLASHMHA_SYNCHRONIZE=1 in the environment it also waits for the kernel (not
// while the stream is captured), so that what goes wrong inside is reported here and not later.
void require_launched(const Launch& launch, const AttentionCall& call, const Problem& problem,
                      cudaStream_t stream);

// With FLASHMHA_SYNCHRONIZE=1: waits for what was queued, unless it is being captured, and returns
// what went wrong. Otherwise success.
cudaError_t wait_if_asked(cudaStream_t stream);

}  // namespace flashmha::cuda
