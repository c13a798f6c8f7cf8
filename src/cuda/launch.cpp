#include "cuda/launch.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
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

// What was told the runtime already, by kernel and device; a pair may push out another.
class Told {
 public:
  bool operator()(const void* kernel, int device) const {
    return slot(kernel, device).load(std::memory_order_relaxed) == key(kernel, device);
  }
  void remember(const void* kernel, int device) {
    slot(kernel, device).store(key(kernel, device), std::memory_order_relaxed);
  }

 private:
  static constexpr std::size_t kNumSlots = 1024;

  static std::uintptr_t key(const void* kernel, int device) {
    return reinterpret_cast<std::uintptr_t>(kernel) * kMaxDevices +
           static_cast<std::uintptr_t>(device);
  }
  std::atomic<std::uintptr_t>& slot(const void* kernel, int device) const {
    constexpr int kFunctionAlignment = 16;
    const auto number = reinterpret_cast<std::uintptr_t>(kernel) / kFunctionAlignment;
    return slots_[(number + static_cast<std::uintptr_t>(device)) % kNumSlots];
  }

  mutable std::array<std::atomic<std::uintptr_t>, kNumSlots> slots_{};
};

}  // namespace

cudaError_t allow_shared_bytes(const void* kernel, int shared_bytes) {
  constexpr int kWithoutAsking = 48 * 1024;
  if (shared_bytes <= kWithoutAsking) return cudaSuccess;
  static Told told;  // asking takes as long as a third of a launch
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess || told(kernel, device)) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess) told.remember(kernel, device);
  return error;
}

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
