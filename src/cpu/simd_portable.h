#pragma once

// The portable tier of the vector layer: four lanes (one SSE2 or NEON register), written in the
// compiler's vector extensions alone.

#include <cstdint>

namespace flashmha::cpu::FLASHMHA_ISA {

constexpr int kLanes = 4;

// Register tile of the matrix products: 6 x 8 = 12 accumulators, 2 vectors of B, 1 broadcast.
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;

using Vec [[gnu::vector_size(16)]] = float;
using IVec [[gnu::vector_size(16)]] = int32_t;
using HalfVec [[gnu::vector_size(8)]] = uint16_t;

template <class V, class T>
inline V load_lanes(const T* p, int n) {
  T lanes[kLanes] = {};
  for (int i = 0; i < n; ++i)
    lanes[i] = p[i];
  V v;
  __builtin_memcpy(&v, lanes, sizeof(v));
  return v;
}

template <class V, class T>
inline void store_lanes(T* p, V v, int n) {
  T lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof(v));
  for (int i = 0; i < n; ++i)
    p[i] = lanes[i];
}

// a * b + c: rounded twice on plain x86-64, once where the compiler knows an FMA (aarch64).
inline Vec fma(Vec a, Vec b, Vec c) {
  return a * b + c;
}

inline Vec set1(float x) {
  return Vec{x, x, x, x};
}
inline Vec load(const float* p) {
  return load_lanes<Vec>(p, kLanes);
}
inline void store(float* p, Vec v) {
  store_lanes(p, v, kLanes);
}
inline Vec load_n(const float* p, int n) {
  return load_lanes<Vec>(p, n);
}
inline void store_n(float* p, Vec v, int n) {
  store_lanes(p, v, n);
}

// kLanes 32-bit words, whatever they are.
inline IVec load_words(const void* p) {
  IVec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline HalfVec load_half(const uint16_t* p) {
  return load_lanes<HalfVec>(p, kLanes);
}
inline void store_half(uint16_t* p, HalfVec v) {
  store_lanes(p, v, kLanes);
}
inline HalfVec load_half_n(const uint16_t* p, int n) {
  return load_lanes<HalfVec>(p, n);
}
inline void store_half_n(uint16_t* p, HalfVec v, int n) {
  store_lanes(p, v, n);
}

inline IVec widen(HalfVec v) {
  return __builtin_convertvector(v, IVec);
}

// Keeps the low 16 bits of every lane; the high ones must be zero.
inline HalfVec narrow(IVec v) {
  return __builtin_convertvector(v, HalfVec);
}

// Moves exponent and mantissa into place and corrects the bias by a multiplication, which also
// makes subnormals right; infinities and NaNs get the exponent of a float's.
inline Vec from_fp16(HalfVec v) {
  const IVec bits = widen(v);
  const IVec magnitude = (bits & 0x7fff) << 13;
  const IVec finite = (IVec)((Vec)magnitude * 0x1p112f);
  const IVec special = magnitude >= (0x7c00 << 13);
  return (Vec)(finite | (special & 0x7f800000) | ((bits & 0x8000) << 16));
}

// Normal results: add half a unit of the 13 bits to drop, ties to even, then correct the bias.
// Subnormal results: adding 0.5 lets the float adder round at the unit of fp16's subnormals, 2^-24.
inline HalfVec to_fp16(Vec v) {
  const IVec bits = (IVec)v;
  const IVec magnitude = bits & 0x7fffffff;
  const IVec rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  const IVec normal = (rounded - (112 << 23)) >> 13;
  const IVec subnormal = (IVec)((Vec)magnitude + 0.5f) - 0x3f000000;
  const IVec finite = magnitude < (113 << 23) ? subnormal : normal;
  const IVec overflow = rounded >= (143 << 23);
  const IVec nan = magnitude > 0x7f800000;
  const IVec quiet_nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  const IVec result = nan ? quiet_nan : (overflow ? finite * 0 + 0x7c00 : finite);
  return narrow(result | ((bits >> 16) & 0x8000));
}

// Both return the second operand when one of the two is a NaN.
inline Vec min(Vec a, Vec b) {
  return a < b ? a : b;
}
inline Vec max(Vec a, Vec b) {
  return a > b ? a : b;
}

// Round to nearest even for |v| < 2^22; a NaN gives 0. Adding 1.5 * 2^23 leaves no fraction bits.
inline IVec nearest_int(Vec v) {
  const IVec shifted = (IVec)(v + 0x1.8p23f) - 0x4b400000;
  return shifted & (v == v);
}

// rows[i][j] <-> rows[j][i].
inline void transpose(Vec (&rows)[kLanes]) {
  const Vec a = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const Vec b = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const Vec c = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const Vec d = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  rows[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  rows[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  rows[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

// Lane i is the sum of rows[i].
inline Vec sum_each(const Vec (&rows)[kLanes]) {
  Vec columns[kLanes] = {rows[0], rows[1], rows[2], rows[3]};
  transpose(columns);
  return (columns[0] + columns[1]) + (columns[2] + columns[3]);
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
