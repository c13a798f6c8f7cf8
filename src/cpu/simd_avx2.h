#pragma once

// The AVX2 + FMA + F16C tier of the vector layer: eight lanes, sixteen registers.

#include <immintrin.h>

#include <cstdint>

namespace flashmha::cpu::FLASHMHA_ISA {

constexpr int kLanes = 8;

// Register tile of the matrix products: 6 x 16 = 12 accumulators, 2 vectors of B, 1 broadcast.
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;

using Vec [[gnu::vector_size(32)]] = float;
using IVec [[gnu::vector_size(32)]] = int32_t;
using HalfVec [[gnu::vector_size(16)]] = uint16_t;

inline Vec set1(float x) {
  return (Vec)_mm256_set1_ps(x);
}
inline Vec load(const float* p) {
  return (Vec)_mm256_loadu_ps(p);
}
inline void store(float* p, Vec v) {
  _mm256_storeu_ps(p, (__m256)v);
}

// The first n of 16 words starting at kTailMask + 8 - n are set.
alignas(32) constexpr int32_t kTailMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

inline Vec load_n(const float* p, int n) {
  const __m256i mask = _mm256_loadu_si256((const __m256i*)(kTailMask + 8 - n));
  return (Vec)_mm256_maskload_ps(p, mask);
}

// Not vmaskmovps: a masked store costs tens of cycles on AMD's cores.
inline void store_n(float* p, Vec v, int n) {
  if (n == kLanes) return store(p, v);
  __m128 part = _mm256_castps256_ps128((__m256)v);
  if (n & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps((__m256)v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi((__m64*)p, part);
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, part);
}

// kLanes 32-bit words, whatever they are.
inline IVec load_words(const void* p) {
  return (IVec)_mm256_loadu_si256((const __m256i*)p);
}
inline HalfVec load_half(const uint16_t* p) {
  return (HalfVec)_mm_loadu_si128((const __m128i*)p);
}
inline void store_half(uint16_t* p, HalfVec v) {
  _mm_storeu_si128((__m128i*)p, (__m128i)v);
}

// Word 7 is set; seen from kLastWord + 8 - n it is word n - 1.
alignas(16) constexpr uint16_t kLastWord[15] = {0, 0, 0, 0, 0, 0, 0, 0xffff};

inline HalfVec load_half_n(const uint16_t* p, int n) {
  const __m128i pairs = _mm_loadu_si128((const __m128i*)(kTailMask + 8 - n / 2));
  const __m128i v = _mm_maskload_epi32((const int*)p, pairs);
  if (n % 2 == 0) return (HalfVec)v;
  const __m128i last = _mm_loadu_si128((const __m128i*)(kLastWord + 8 - n));
  return (HalfVec)_mm_or_si128(v, _mm_and_si128(last, _mm_set1_epi16((short)p[n - 1])));
}

inline void store_half_n(uint16_t* p, HalfVec v, int n) {
  if (n == kLanes) return store_half(p, v);
  __m128i part = (__m128i)v;
  if (n & 4) {
    _mm_storel_epi64((__m128i*)p, part);
    part = _mm_srli_si128(part, 8);
    p += 4;
  }
  if (n & 2) {
    _mm_storeu_si32(p, part);
    part = _mm_srli_si128(part, 4);
    p += 2;
  }
  if (n & 1) *p = (uint16_t)_mm_extract_epi16(part, 0);
}

inline IVec widen(HalfVec v) {
  return (IVec)_mm256_cvtepu16_epi32((__m128i)v);
}

// Keeps the low 16 bits of every lane; the high ones must be zero.
inline HalfVec narrow(IVec v) {
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  return (HalfVec)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

inline Vec from_fp16(HalfVec v) {
  return (Vec)_mm256_cvtph_ps((__m128i)v);
}
inline HalfVec to_fp16(Vec v) {
  return (HalfVec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}

// a * b + c with one rounding.
inline Vec fma(Vec a, Vec b, Vec c) {
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

// Both return the second operand when one of the two is a NaN.
inline Vec min(Vec a, Vec b) {
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
}
inline Vec max(Vec a, Vec b) {
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
}

// Round to nearest even; a NaN gives INT_MIN.
inline IVec nearest_int(Vec v) {
  return (IVec)_mm256_cvtps_epi32((__m256)v);
}

// rows[i][j] <-> rows[j][i], 24 shuffles.
inline void transpose(Vec (&rows)[kLanes]) {
  __m256 pairs[8], quads[8];
  for (int i = 0; i < 4; ++i) {
    const __m256 a = (__m256)rows[2 * i], b = (__m256)rows[2 * i + 1];
    pairs[2 * i] = _mm256_unpacklo_ps(a, b);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(a, b);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const __m256 a = pairs[4 * i + j], b = pairs[4 * i + j + 2];
      quads[4 * i + 2 * j] = _mm256_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 1, 0));
      quads[4 * i + 2 * j + 1] = _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 2, 3, 2));
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = (Vec)_mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4] = (Vec)_mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

// Lane i is the sum of rows[i]: halves the vectors three times, 14 shuffles and 7 additions.
inline Vec sum_each(const Vec (&rows)[kLanes]) {
  __m256 pairs[4], quads[2];
  for (int i = 0; i < 4; ++i) {
    const __m256 a = (__m256)rows[2 * i], b = (__m256)rows[2 * i + 1];
    pairs[i] = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
  }
  for (int i = 0; i < 2; ++i) {
    const __m256 a = pairs[2 * i], b = pairs[2 * i + 1];
    quads[i] = _mm256_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 1, 0)) +
               _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 2, 3, 2));
  }
  return (Vec)(_mm256_permute2f128_ps(quads[0], quads[1], 0x20) +
               _mm256_permute2f128_ps(quads[0], quads[1], 0x31));
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
