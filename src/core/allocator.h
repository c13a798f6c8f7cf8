// Where the memory of tensors comes from. One pair of functions per device; counts what is alive.
#pragma once

#include <cstddef>
#include <memory>

#include "flashmha/device.h"

namespace flashmha {

inline constexpr std::size_t kAlignment = 64;  // a cache line, and a full AVX-512 register

// Memory of at least `bytes` bytes (a valid pointer also for 0), freed with the last owner. Throws
// out_of_memory, or device if this build does not know the device.
std::shared_ptr<void> allocate(std::size_t bytes, Device device);

}  // namespace flashmha
