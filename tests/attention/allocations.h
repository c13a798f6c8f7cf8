// Counts what a program allocates with new.
#pragma once

#include <cstdint>

namespace flashmha::tests {

// Of this thread, so far.
std::int64_t num_allocations();

}  // namespace flashmha::tests
