#pragma once

#define FLASHMHA_ISA avx512

namespace flashmha::cpu::FLASHMHA_ISA {
constexpr const char* kTierName = "avx512";
}

#include "cpu/simd_avx512.h"
// After the types, which it needs.
#include "cpu/bf16_soft.h"
