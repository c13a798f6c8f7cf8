#pragma once

#define FLASHMHA_ISA avx512_bf16

namespace flashmha::cpu::FLASHMHA_ISA {
constexpr const char* kTierName = "avx512_bf16";
}

#include "cpu/simd_avx512.h"
// After the types, which it needs.
#include "cpu/bf16_avx512.h"
