#pragma once

// float -> bf16 in integer arithmetic, for the tiers without an instruction for it.

namespace flashmha::cpu::FLASHMHA_ISA {

// Round to nearest even by carrying into the upper half; a NaN stays a (quiet) NaN.
inline HalfVec to_bf16(Vec v) {
  const IVec bits = (IVec)v;
  const IVec high = (bits >> 16) & 0xffff;
  const IVec rounded = ((bits + 0x7fff + (high & 1)) >> 16) & 0xffff;
  return narrow(v == v ? rounded : (high | 0x40));
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
