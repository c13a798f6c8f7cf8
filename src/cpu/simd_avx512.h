#pragma once

// The AVX-512 (F, BW, DQ, VL) tiers of the vector layer: sixteen lanes, thirty-two registers.

#include <immintrin.h>

#include <cstdint>

namespace flashmha::cpu::FLASHMHA_ISA {

constexpr int kLanes = 16;

// Register tile of the matrix products: 6 x 64 = 24 accumulators, 4 vectors of B, 1 broadcast.
constexpr int kTileRows = 6;
constexpr int kTileVectors = 4;

using Vec [[gnu::vector_size(64)]] = float;
using IVec [[gnu::vector_size(64)]] = int32_t;
using HalfVec [[gnu::vector_size(32)]] = uint16_t;

inline __mmask16 first(int n) {
  return static_cast<__mmask16>((1u << n) - 1);
}

inline Vec set1(float x) {
  return (Vec)_mm512_set1_ps(x);
}
inline Vec load(const float* p) {
  return (Vec)_mm512_loadu_ps(p);
}
inline void store(float* p, Vec v) {
  _mm512_storeu_ps(p, (__m512)v);
}
inline Vec load_n(const float* p, int n) {
  return (Vec)_mm512_maskz_loadu_ps(first(n), p);
}
inline void store_n(float* p, Vec v, int n) {
  _mm512_mask_storeu_ps(p, first(n), (__m512)v);
}

// kLanes 32-bit words, whatever they are.
inline IVec load_words(const void* p) {
  return (IVec)_mm512_loadu_si512(p);
}
inline HalfVec load_half(const uint16_t* p) {
  return (HalfVec)_mm256_loadu_si256((const __m256i*)p);
}
inline void store_half(uint16_t* p, HalfVec v) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)v);
}
inline HalfVec load_half_n(const uint16_t* p, int n) {
  return (HalfVec)_mm256_maskz_loadu_epi16(first(n), p);
}
inline void store_half_n(uint16_t* p, HalfVec v, int n) {
  _mm256_mask_storeu_epi16(p, first(n), (__m256i)v);
}

inline IVec widen(HalfVec v) {
  return (IVec)_mm512_cvtepu16_epi32((__m256i)v);
}

// Keeps the low 16 bits of every lane; the high ones must be zero.
inline HalfVec narrow(IVec v) {
  return (HalfVec)_mm512_cvtepi32_epi16((__m512i)v);
}

inline Vec from_fp16(HalfVec v) {
  return (Vec)_mm512_cvtph_ps((__m256i)v);
}
inline HalfVec to_fp16(Vec v) {
  return (HalfVec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
}

// a * b + c with one rounding.
inline Vec fma(Vec a, Vec b, Vec c) {
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

// Both return the second operand when one of the two is a NaN.
inline Vec min(Vec a, Vec b) {
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
}
inline Vec max(Vec a, Vec b) {
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
}

// Round to nearest even; a NaN gives INT_MIN.
inline IVec nearest_int(Vec v) {
  return (IVec)_mm512_cvtps_epi32((__m512)v);
}

// rows[i][j] <-> rows[j][i], 64 shuffles: 4 x 4 inside the 128-bit lanes, then 4 x 4 of the lanes.
inline void transpose(Vec (&rows)[kLanes]) {
  __m512 quads[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512 a = (__m512)rows[i], b = (__m512)rows[i + 1];
    const __m512 c = (__m512)rows[i + 2], d = (__m512)rows[i + 3];
    const __m512 ab_low = _mm512_unpacklo_ps(a, b), ab_high = _mm512_unpackhi_ps(a, b);
    const __m512 cd_low = _mm512_unpacklo_ps(c, d), cd_high = _mm512_unpackhi_ps(c, d);
    quads[i] = _mm512_shuffle_ps(ab_low, cd_low, _MM_SHUFFLE(1, 0, 1, 0));
    quads[i + 1] = _mm512_shuffle_ps(ab_low, cd_low, _MM_SHUFFLE(3, 2, 3, 2));
    quads[i + 2] = _mm512_shuffle_ps(ab_high, cd_high, _MM_SHUFFLE(1, 0, 1, 0));
    quads[i + 3] = _mm512_shuffle_ps(ab_high, cd_high, _MM_SHUFFLE(3, 2, 3, 2));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = quads[i], b = quads[i + 4], c = quads[i + 8], d = quads[i + 12];
    const __m512 ab_even = _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(2, 0, 2, 0));
    const __m512 ab_odd = _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 1, 3, 1));
    const __m512 cd_even = _mm512_shuffle_f32x4(c, d, _MM_SHUFFLE(2, 0, 2, 0));
    const __m512 cd_odd = _mm512_shuffle_f32x4(c, d, _MM_SHUFFLE(3, 1, 3, 1));
    rows[i] = (Vec)_mm512_shuffle_f32x4(ab_even, cd_even, _MM_SHUFFLE(2, 0, 2, 0));
    rows[i + 4] = (Vec)_mm512_shuffle_f32x4(ab_odd, cd_odd, _MM_SHUFFLE(2, 0, 2, 0));
    rows[i + 8] = (Vec)_mm512_shuffle_f32x4(ab_even, cd_even, _MM_SHUFFLE(3, 1, 3, 1));
    rows[i + 12] = (Vec)_mm512_shuffle_f32x4(ab_odd, cd_odd, _MM_SHUFFLE(3, 1, 3, 1));
  }
}

// Lane i is the sum of rows[i]: halves the vectors four times, 30 shuffles and 15 additions.
inline Vec sum_each(const Vec (&rows)[kLanes]) {
  __m512 pairs[8], quads[4], octets[2];
  for (int i = 0; i < 8; ++i) {
    const __m512 a = (__m512)rows[2 * i], b = (__m512)rows[2 * i + 1];
    pairs[i] = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = pairs[2 * i], b = pairs[2 * i + 1];
    quads[i] = _mm512_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 1, 0)) +
               _mm512_shuffle_ps(a, b, _MM_SHUFFLE(3, 2, 3, 2));
  }
  const auto fold_lanes = [](__m512 a, __m512 b) {
    return _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(2, 0, 2, 0)) +
           _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 1, 3, 1));
  };
  for (int i = 0; i < 2; ++i)
    octets[i] = fold_lanes(quads[2 * i], quads[2 * i + 1]);
  return (Vec)fold_lanes(octets[0], octets[1]);
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
