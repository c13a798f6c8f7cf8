#include "core/memory_plan.h"

#include <algorithm>
#include <numeric>

#include "core/allocator.h"
#include "core/check.h"

namespace flashmha {
namespace {

thread_local AllocationHook* hook_of_this_thread = nullptr;

std::size_t aligned(std::size_t bytes) {
  return (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
}

bool alive_together(const Lifetime& a, const Lifetime& b) {
  return a.begin < b.end && b.begin < a.end;
}

}  // namespace

MemoryPlan plan_memory(std::span<const Lifetime> lifetimes) {
  MemoryPlan plan;
  plan.offsets.resize(lifetimes.size());
  for (const Lifetime& lifetime : lifetimes)
    plan.bytes.push_back(lifetime.bytes);

  std::vector<std::size_t> by_size(lifetimes.size());
  std::iota(by_size.begin(), by_size.end(), std::size_t{0});
  std::ranges::stable_sort(by_size, std::ranges::greater(),
                           [&](std::size_t i) { return lifetimes[i].bytes; });
  std::vector<std::size_t> by_offset;  // of those that have a place
  for (const std::size_t i : by_size) {
    const std::size_t bytes = aligned(lifetimes[i].bytes);
    std::size_t offset = 0;
    for (const std::size_t other : by_offset) {
      if (!alive_together(lifetimes[i], lifetimes[other])) continue;
      if (offset + bytes <= plan.offsets[other]) break;
      offset = std::max(offset, plan.offsets[other] + aligned(lifetimes[other].bytes));
    }
    plan.offsets[i] = offset;
    plan.total_bytes = std::max(plan.total_bytes, offset + bytes);
    const auto behind = std::ranges::upper_bound(
        by_offset, offset, {}, [&](std::size_t other) { return plan.offsets[other]; });
    by_offset.insert(behind, i);
  }
  return plan;
}

AllocationHook::AllocationHook(Device device) : device_(device) {
  check(hook_of_this_thread == nullptr, "[Graph] work that is recorded cannot record other work");
  hook_of_this_thread = this;
}

AllocationHook::~AllocationHook() {
  hook_of_this_thread = nullptr;
}

AllocationHook* AllocationHook::of(Device device) {
  AllocationHook* hook = hook_of_this_thread;
  return hook != nullptr && hook->device_ == device ? hook : nullptr;
}

std::shared_ptr<void> AllocationWatch::allocate(std::size_t bytes, Stream stream) {
  std::shared_ptr<void> memory = allocate_unwatched(bytes, device(), stream);
  const std::size_t index = log_->lifetimes.size();
  log_->lifetimes.push_back({.bytes = bytes, .begin = log_->now++});
  void* address = memory.get();
  return {address, [memory = std::move(memory), log = log_, index](void*) mutable {
            log->lifetimes[index].end = log->now++;
            memory.reset();
          }};
}

std::vector<Lifetime> AllocationWatch::finish() const {
  std::vector<Lifetime> lifetimes;
  std::ranges::copy_if(
      log_->lifetimes, std::back_inserter(lifetimes),
      [](const Lifetime& lifetime) { return lifetime.end != Lifetime::kStillAlive; });
  return lifetimes;
}

PlannedMemory::PlannedMemory(Device device, const MemoryPlan& plan, void* block)
    : AllocationHook(device), plan_(plan), block_(static_cast<std::byte*>(block)) {}

std::shared_ptr<void> PlannedMemory::allocate(std::size_t bytes, Stream) {
  const bool planned = next_ < plan_.bytes.size();
  if (!planned || plan_.bytes[next_] != bytes) {
    fail(ErrorCode::invalid_argument,
         "[Graph] work must allocate the same in every run; allocation {} has {} bytes, where the "
         "first run had {}",
         next_, bytes, planned ? fmt::format("{} bytes", plan_.bytes[next_]) : "none");
  }
  ++*num_alive_;
  return {block_ + plan_.offsets[next_++], [count = num_alive_](void*) { --*count; }};
}

void PlannedMemory::require_complete() const {
  check(next_ == plan_.bytes.size(),
        "[Graph] work must allocate the same in every run; it made {} allocations, where the first "
        "run made {}",
        next_, plan_.bytes.size());
  check(*num_alive_ == 0,
        "[Graph] memory that work allocates must be free again at its end; {} allocations are not",
        *num_alive_);
}

}  // namespace flashmha
