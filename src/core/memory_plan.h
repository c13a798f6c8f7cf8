// Memory of work that allocates the same every time: watched once, laid out in one block, and from
// then on taken from that block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "flashmha/device.h"

namespace flashmha {

// One allocation of a piece of work. Times count allocations and releases from its beginning.
struct Lifetime {
  static constexpr std::int64_t kStillAlive = -1;

  std::size_t bytes = 0;
  std::int64_t begin = 0;
  std::int64_t end = kStillAlive;
};

// Where allocations lie in one block, in the order in which they are made.
struct MemoryPlan {
  std::vector<std::size_t> bytes;
  std::vector<std::size_t> offsets;  // multiples of kAlignment
  std::size_t total_bytes = 0;
};

// No two that are alive together overlap. The largest are placed first, each as low as it fits:
// hardly ever more than the most bytes that are alive at a time.
MemoryPlan plan_memory(std::span<const Lifetime> lifetimes);

// While one of these lives, it sees what its thread allocates on a device. They do not nest.
class AllocationHook {
 public:
  explicit AllocationHook(Device device);
  AllocationHook(const AllocationHook&) = delete;
  AllocationHook& operator=(const AllocationHook&) = delete;
  virtual ~AllocationHook();

  // That of this thread and device, or null.
  static AllocationHook* of(Device device);
  virtual std::shared_ptr<void> allocate(std::size_t bytes, Stream stream) = 0;

 protected:
  Device device() const { return device_; }

 private:
  Device device_;
};

// Allocates as always, and writes down lifetimes.
class AllocationWatch final : public AllocationHook {
 public:
  using AllocationHook::AllocationHook;
  std::shared_ptr<void> allocate(std::size_t bytes, Stream stream) override;

  // Of what is free again. What is still alive was made once, to stay.
  std::vector<Lifetime> finish() const;

 private:
  struct Log {
    std::vector<Lifetime> lifetimes;
    std::int64_t now = 0;
  };
  std::shared_ptr<Log> log_ = std::make_shared<Log>();
};

// Gives out the places of a plan. Throws invalid_argument where the work does not allocate what it
// allocated when it was watched.
class PlannedMemory final : public AllocationHook {
 public:
  // block: plan.total_bytes bytes. Both must outlive this.
  PlannedMemory(Device device, const MemoryPlan& plan, void* block);
  std::shared_ptr<void> allocate(std::size_t bytes, Stream stream) override;

  // Throws invalid_argument unless every place was given out and has come back.
  void require_complete() const;

 private:
  const MemoryPlan& plan_;
  std::byte* block_;
  std::size_t next_ = 0;
  std::shared_ptr<std::int64_t> num_alive_ = std::make_shared<std::int64_t>(0);
};

}  // namespace flashmha
