// One tensor-core instruction and what its operands look like (PTX ISA, "mma.m16n8k16"); sm_80 and
// newer. With group = lane / 4 and pair = 2 * (lane % 4), a thread holds
//
//   A 16x16   a0: row group,     columns pair, pair+1      a2: the same row, columns + 8
//             a1: row group + 8, columns pair, pair+1      a3: the same row, columns + 8
//   B 16x8    b0: rows pair, pair+1, column group          b1: rows + 8
//   C 16x8    c0 c1: row group, columns pair, pair+1       c2 c3: row group + 8
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "flashmha/dtype.h"

namespace flashmha::cuda {

using Accumulator = float[4];
using FragmentA = std::uint32_t[4];

// c += a b
template <class T>
__device__ __forceinline__ void mma(Accumulator& c, const FragmentA& a, std::uint32_t b0,
                                    std::uint32_t b1) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two floats rounded to the storage type; the first one in the lower half.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(pair);
  }
}

template <class T>
__device__ __forceinline__ float widen(T value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return __uint_as_float(static_cast<std::uint32_t>(value.bits) << 16);
  } else {
    return __half2float(__ushort_as_half(value.bits));
  }
}

// The accumulators of two neighbouring C tiles, rounded, as an A fragment of 16 columns: this is
// how probabilities go from one product into the next without leaving the registers.
template <class T>
__device__ __forceinline__ void pack_fragment(const Accumulator& left, const Accumulator& right,
                                              FragmentA& a) {
  a[0] = pack<T>(left[0], left[1]);
  a[1] = pack<T>(left[2], left[3]);
  a[2] = pack<T>(right[0], right[1]);
  a[3] = pack<T>(right[2], right[3]);
}

// 2^x to 2 units in the last place; 0 for -inf.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace flashmha::cuda
