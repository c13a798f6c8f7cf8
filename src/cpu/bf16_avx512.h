#pragma once

// float -> bf16 by AVX-512 BF16's instruction, one instead of six. It takes subnormals for zero.

namespace flashmha::cpu::FLASHMHA_ISA {

inline HalfVec to_bf16(Vec v) {
  return (HalfVec)_mm512_cvtneps_pbh((__m512)v);
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
