#include "cuda/launch.h"

#include <cstdlib>
#include <string_view>

#include "cuda/error.h"

namespace flashmha::cuda {
namespace {

bool waits_for_kernels() {
  static const bool waits = [] {
    const char* value = std::getenv("FLASHMHA_SYNCHRONIZE");  // NOLINT(concurrency-mt-unsafe)
    return value != nullptr && std::string_view(value) != "0";
  }();
  return waits;
}

}  // namespace

cudaError_t wait_if_asked(cudaStream_t stream) {
  if (!waits_for_kernels()) return cudaSuccess;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error != cudaSuccess || status != cudaStreamCaptureStatusNone) return error;
  return cudaStreamSynchronize(stream);
}

void require_launched(const Launch& launch, const AttentionCall& call, const Problem& problem,
                      cudaStream_t stream) {
  const auto require = [&](cudaError_t error, const char* what) {
    if (error == cudaSuccess) [[likely]]
      return;
    cudaGetLastError();  // reported once, here
    fail(ErrorCode::device,
         "[{}] kernel {} {}: {}; {} blocks of {} threads with {} bytes of shared memory; {}",
         call.name, launch.kernel, what, cudaGetErrorString(error), launch.num_blocks,
         launch.num_threads, launch.shared_bytes, describe(problem));
  };
  require(launch.error, "was not launched");
  if (launch.num_blocks > 0) require(wait_if_asked(stream), "failed");
}

}  // namespace flashmha::cuda
