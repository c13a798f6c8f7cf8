// Memory of GPUs, from the driver's stream-ordered pool.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <limits>

#include "core/allocator.h"
#include "core/cuda.h"
#include "cuda/error.h"

namespace flashmha {
namespace {

using cuda::kMaxDevices;

struct Counter {
  std::atomic<std::size_t> current{0};
  std::atomic<std::size_t> peak{0};
};

Counter& counter_of(Device device) {
  static std::array<Counter, kMaxDevices> counters;
  check(device.index >= 0 && device.index < kMaxDevices,
        "[allocate] a device index must be in [0, {}); got {}", kMaxDevices, device.index);
  return counters[static_cast<std::size_t>(device.index)];
}

// The device's pool, told once to keep what is freed for the next allocation.
cudaMemPool_t pool_of(Device device) {
  cudaMemPool_t pool = nullptr;
  cuda::check_cuda(cudaDeviceGetDefaultMemPool(&pool, device.index), "allocate", device);
  static std::array<std::atomic<bool>, kMaxDevices> prepared;
  if (!prepared[static_cast<std::size_t>(device.index)].exchange(true)) {
    std::uint64_t keep = std::numeric_limits<std::uint64_t>::max();
    cuda::check_cuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep),
                     "allocate", device);
  }
  return pool;
}

void count_allocation(Counter& counter, std::size_t bytes) {
  const std::size_t now = counter.current.fetch_add(bytes) + bytes;
  std::size_t peak = counter.peak.load();
  while (peak < now && !counter.peak.compare_exchange_weak(peak, now)) {
  }
}

// A second try after everything that the pool holds has gone back to the device.
cudaError_t take(void** block, std::size_t bytes, Device device, cudaStream_t stream) {
  const cudaMemPool_t pool = pool_of(device);
  cudaError_t error = cudaMallocAsync(block, bytes, stream);
  if (error != cudaErrorMemoryAllocation) return error;
  cudaGetLastError();
  cudaStreamSynchronize(stream);
  cudaMemPoolTrimTo(pool, 0);
  return cudaMallocAsync(block, bytes, stream);
}

}  // namespace

std::shared_ptr<void> cuda_allocate(std::size_t bytes, Device device, Stream stream) {
  const cuda::CurrentDevice current(device, "allocate");
  Counter& counter = counter_of(device);
  constexpr std::size_t kLargest = static_cast<std::size_t>(-1) / 2;
  const std::size_t rounded =
      (std::max<std::size_t>(std::min(bytes, kLargest), 1) + kAlignment - 1) / kAlignment *
      kAlignment;
  void* block = nullptr;
  const cudaStream_t queue = cuda::stream_of(stream);
  const cudaError_t error = take(&block, rounded, device, queue);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    fail(ErrorCode::out_of_memory,
         "[allocate] {} bytes could not be had on {}; {} bytes are in use, {} of {} are free",
         bytes, device_name(device), counter.current.load(), free_bytes, total_bytes);
  }
  cuda::check_cuda(error, "allocate", device);
  count_allocation(counter, rounded);
  return {block, [rounded, &counter, queue](void* owned) {
            counter.current.fetch_sub(rounded);
            cudaFreeAsync(owned, queue);  // fails only if the process is ending
          }};
}

MemoryStats cuda_memory_stats(Device device) {
  const Counter& counter = counter_of(device);
  return {counter.current.load(), counter.peak.load()};
}

void cuda_reset_peak_memory(Device device) {
  Counter& counter = counter_of(device);
  counter.peak.store(counter.current.load());
}

void cuda_synchronize(Device device, Stream stream) {
  const cuda::CurrentDevice current(device, "synchronize");
  const cudaStream_t queue = cuda::stream_of(stream);
  cuda::require_not_recorded("synchronize", queue);
  cuda::check_cuda(cudaStreamSynchronize(queue), "synchronize", device);
}

}  // namespace flashmha
