#pragma once

// Elementary functions of a vector. Polynomials are minimax fits of relative error, made with the
// Remez exchange algorithm; the bounds named here are checked by tests/cpu/vector_math_test.cpp.
// A NaN gives a NaN everywhere.

#include "cpu/simd.h"

namespace flashmha::cpu::FLASHMHA_ISA {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;
// ln 2 in two parts: the first has 15 significant bits, so that n * kLn2High is exact.
constexpr float kLn2High = 0x1.62e4p-1f;
constexpr float kLn2Low = 0x1.7f7d1cf8p-20f;

// v * 2^n for v in [0.5, 2] by adding to the exponent; v = 1, n = 128 gives infinity.
inline Vec scale_exponent(Vec v, IVec n) {
  return (Vec)((IVec)v + (n << 23));
}

// exp2 of x below 128.
inline Vec exp2_below_128(Vec x) {
  const IVec n = nearest_int(x);
  const Vec f = x - to_float(n);
  Vec p = set1(0x1.470bb8p-13f);
  p = p * f + 0x1.5f72acp-10f;
  p = p * f + 0x1.3b270ep-7f;
  p = p * f + 0x1.c6ae72p-5f;
  p = p * f + 0x1.ebfbe2p-3f;
  p = p * f + 0x1.62e432p-1f;
  p = p * f + 1.0f;
  return zero_where(x < -126.0f, scale_exponent(p, n));
}

// 2^x within 1 ulp (1.5 where a tier has no FMA). Exact for whole x, infinity from 128, 0 below
// -126: results are never subnormal, because products with subnormal operands cost some cores more
// than a hundred cycles.
inline Vec exp2(Vec x) {
  return exp2_below_128(min(set1(128.0f), x));
}

// e^x within 1.5 ulp; 0 below -87.33 (where the result would be subnormal), infinity above 88.73.
inline Vec exp(Vec x) {
  const Vec clamped = min(set1(89.0f), x);
  const IVec n = nearest_int(clamped * kLog2E);
  const Vec m = to_float(n);
  const Vec f = (clamped - m * kLn2High) - m * kLn2Low;
  Vec p = set1(0x1.6a241ap-10f);
  p = p * f + 0x1.1239f2p-7f;
  p = p * f + 0x1.5558f2p-5f;
  p = p * f + 0x1.555492p-3f;
  p = p * f + 0x1.fffffcp-2f;
  p = p * (f * f) + f + 1.0f;
  const Vec result = select(x > 0x1.62e42ep+6f, set1(__builtin_inff()), scale_exponent(p, n));
  return zero_where(x < -0x1.5d589ep+6f, result);
}

// tanh(x) within 2 ulp: an odd polynomial near 0, 1 - 2 / (e^2|x| + 1) beyond.
inline Vec tanh(Vec x) {
  const Vec magnitude = abs(x);
  const Vec u = x * x;
  Vec p = set1(-0x1.75e1ccp-8f);
  p = p * u + 0x1.52269cp-6f;
  p = p * u + -0x1.b83c5ap-5f;
  p = p * u + 0x1.110726p-3f;
  p = p * u + -0x1.555532p-2f;
  const Vec near = p * u * magnitude + magnitude;
  const Vec far = 1.0f - 2.0f / (exp(magnitude * 2.0f) + 1.0f);
  const IVec sign = (IVec)x & (IVec)set1(-0.0f);
  return (Vec)((IVec)select(magnitude < 0.625f, near, far) | sign);
}

// ln(x) within 1.5 ulp; log(0) = -infinity, NaN below. x = 2^n (1 + f), 1 + f in [sqrt 1/2, sqrt
// 2].
inline Vec log(Vec x) {
  const IVec subnormal = x < 0x1p-126f;
  const Vec scaled = select(subnormal, x * 0x1p25f, x);
  const IVec shifted = (IVec)scaled - 0x3f3504f3;  // the bits of sqrt(1/2)
  const IVec exponent = (shifted >> 23) + (subnormal & -25);
  const Vec f = (Vec)((shifted & 0x7fffff) + 0x3f3504f3) - 1.0f;
  Vec p = set1(0x1.1457c4p-4f);
  p = p * f + -0x1.de3c1cp-4f;
  p = p * f + 0x1.e6f062p-4f;
  p = p * f + -0x1.fc2206p-4f;
  p = p * f + 0x1.233768p-3f;
  p = p * f + -0x1.555c4ep-3f;
  p = p * f + 0x1.99a4b6p-3f;
  p = p * f + -0x1.000006p-2f;
  p = p * f + 0x1.555548p-2f;
  const Vec n = to_float(exponent);
  const Vec square = f * f;
  const Vec tail = p * f * square + (n * kLn2Low - 0.5f * square);
  Vec result = (tail + f) + n * kLn2High;
  result = select(x == __builtin_inff(), x, result);
  result = select(x == 0.0f, set1(-__builtin_inff()), result);
  return select((x < 0.0f) | (x != x), set1(__builtin_nanf("")), result);
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
