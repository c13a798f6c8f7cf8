// The seed of a test program.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace flashmha::test {

// FLASHMHA_TEST_SEED if set, else fresh. Printed once per program.
inline std::uint64_t test_seed() {
  static const std::uint64_t seed = [] {
    const char* text = std::getenv("FLASHMHA_TEST_SEED");
    const std::uint64_t value = text ? std::strtoull(text, nullptr, 10) : std::random_device{}();
    std::printf("FLASHMHA_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

}  // namespace flashmha::test
