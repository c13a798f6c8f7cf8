#pragma once

#define FLASHMHA_ISA portable

namespace flashmha::cpu::FLASHMHA_ISA {
constexpr const char* kTierName = "portable";
}

#include "cpu/simd_portable.h"
// After the types, which it needs.
#include "cpu/bf16_soft.h"
