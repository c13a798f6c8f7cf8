#pragma once

#include <cstdint>

namespace flashmha::cpu {

// The 16-bit floating-point types as bits in memory. On a CPU they are storage only: every kernel
// widens them to float on the way in and rounds to nearest even on the way out, because the bf16
// dot-product instruction of AVX-512 runs at half the rate of the float FMA.
struct Bf16 {
  uint16_t bits;
};

struct Fp16 {
  uint16_t bits;
};

}  // namespace flashmha::cpu
