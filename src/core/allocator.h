// Where the memory of tensors comes from. One pair of functions per device; counts what is alive.
#pragma once

#include <cstddef>
#include <memory>

#include "flashmha/device.h"

namespace flashmha {

inline constexpr std::size_t kAlignment = 64;  // a cache line, and a full AVX-512 register

// Memory of at least `bytes` bytes (a valid pointer also for 0), freed with the last owner; on a
// GPU in the order of the stream, see core/cuda.h. Throws out_of_memory, or device if the device is
// not there.
std::shared_ptr<void> allocate(std::size_t bytes, Device device, Stream stream = {});

// The same past the allocation hook of this thread (core/memory_plan.h).
std::shared_ptr<void> allocate_unwatched(std::size_t bytes, Device device, Stream stream);

}  // namespace flashmha
