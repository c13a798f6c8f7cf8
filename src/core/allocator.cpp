#include "core/allocator.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "core/check.h"
#include "core/cuda.h"
#include "core/memory_plan.h"
#include "flashmha/tensor.h"

namespace flashmha {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Large blocks ask for huge pages: with pages of 4 KiB a core reads a third less from memory, and
// pays a fault for each on first use. The advice may be ignored; nothing depends on it.
void* new_block(std::size_t bytes) {
  if (bytes < 2 * kHugePage) return std::aligned_alloc(kAlignment, bytes);
  void* block = std::aligned_alloc(kHugePage, (bytes + kHugePage - 1) / kHugePage * kHugePage);
  if (block != nullptr) madvise(block, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return block;
}

// Keeps freed blocks for the next tensor of the same size. Large blocks from the system are fresh
// pages: each costs a page fault per 4 KiB on first use, more than the work of a short attention
// call.
class HostPool {
 public:
  void* take(std::size_t bytes) {
    if (bytes >= kSmallestPooled) {
      const std::lock_guard lock(mutex_);
      auto found = free_.find(bytes);
      if (found != free_.end() && !found->second.empty()) {
        void* block = found->second.back();
        found->second.pop_back();
        pooled_bytes_ -= bytes;
        return block;
      }
    }
    void* block = new_block(bytes);
    if (block == nullptr) {
      release_all();
      block = new_block(bytes);
    }
    return block;
  }

  void give(void* block, std::size_t bytes) {
    if (bytes >= kSmallestPooled) {
      const std::lock_guard lock(mutex_);
      if (pooled_bytes_ + bytes <= kLargestPool) {
        free_[bytes].push_back(block);
        pooled_bytes_ += bytes;
        return;
      }
    }
    std::free(block);
  }

 private:
  static constexpr std::size_t kSmallestPooled = std::size_t{64} << 10;
  static constexpr std::size_t kLargestPool = std::size_t{1} << 30;

  void release_all() {
    const std::lock_guard lock(mutex_);
    for (auto& [bytes, blocks] : free_) {
      for (void* block : blocks)
        std::free(block);
    }
    free_.clear();
    pooled_bytes_ = 0;
  }

  std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> free_;
  std::size_t pooled_bytes_ = 0;
};

HostPool& host_pool() {
  // Never destroyed: tensors with static lifetime may be freed after any other static object.
  static auto* pool = new HostPool;
  return *pool;
}

std::atomic<std::size_t> current_bytes{0};
std::atomic<std::size_t> peak_bytes{0};

void count_allocation(std::size_t bytes) {
  const std::size_t now = current_bytes.fetch_add(bytes) + bytes;
  std::size_t peak = peak_bytes.load();
  while (peak < now && !peak_bytes.compare_exchange_weak(peak, now)) {
  }
}

}  // namespace

std::shared_ptr<void> allocate(std::size_t bytes, Device device, Stream stream) {
  if (AllocationHook* hook = AllocationHook::of(device)) return hook->allocate(bytes, stream);
  return allocate_unwatched(bytes, device, stream);
}

std::shared_ptr<void> allocate_unwatched(std::size_t bytes, Device device, Stream stream) {
  if (device.type != DeviceType::cpu) return cuda_allocate(bytes, device, stream);
  constexpr std::size_t kLargest = static_cast<std::size_t>(-1) / 2;
  const std::size_t rounded =
      bytes > kLargest ? 0 : (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const std::size_t block_bytes = bytes == 0 ? kAlignment : rounded;
  void* block = block_bytes == 0 ? nullptr : host_pool().take(block_bytes);
  if (block == nullptr) {
    fail(ErrorCode::out_of_memory, "[allocate] {} bytes could not be had; {} bytes are in use",
         bytes, current_bytes.load());
  }
  count_allocation(block_bytes);
  return {block, [block_bytes](void* owned) {
            current_bytes.fetch_sub(block_bytes);
            host_pool().give(owned, block_bytes);
          }};
}

MemoryStats memory_stats(Device device) {
  if (device.type != DeviceType::cpu) return cuda_memory_stats(device);
  return {current_bytes.load(), peak_bytes.load()};
}

void reset_peak_memory(Device device) {
  if (device.type != DeviceType::cpu) return cuda_reset_peak_memory(device);
  peak_bytes.store(current_bytes.load());
}

}  // namespace flashmha
