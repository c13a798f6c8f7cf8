#pragma once

#define FLASHMHA_ISA avx2

namespace flashmha::cpu::FLASHMHA_ISA {
constexpr const char* kTierName = "avx2";
}

#include "cpu/simd_avx2.h"
// After the types, which it needs.
#include "cpu/bf16_soft.h"
