#include "tests/attention/allocations.h"

#include <cstdlib>
#include <new>

namespace {

thread_local std::int64_t count = 0;

}  // namespace

namespace flashmha::tests {

std::int64_t num_allocations() {
  return count;
}

}  // namespace flashmha::tests

// Every allocation of this program goes through here.
void* operator new(std::size_t bytes) {
  ++count;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
