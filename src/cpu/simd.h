#pragma once

// The vector layer, as the kernels see it. One of simd_portable.h, simd_avx2.h, simd_avx512.h and
// one of bf16_soft.h, bf16_avx512.h come first and give the types
//   Vec (kLanes floats), IVec (kLanes int32), HalfVec (kLanes 16-bit patterns)
// and what needs an instruction of its own: set1, load, store, fma, min, max, nearest_int, the
// conversions, transpose. The rest is here. The operators + - * / & | << >> < == ?: are the
// compiler's, and lanes of IVec wrap around (-fwrapv). It also contracts a * b + c to one FMA, but
// only where its optimiser sees the two together: sums whose bits are promised spell out `fma`.
//
// All of it lives in flashmha::cpu::<tier>, once for each tier. No function of std:: may be called
// in here: the linker is free to keep the AVX-512 copy of a shared inline function for everyone.

#include <type_traits>
#include <utility>

#include "cpu/storage.h"

namespace flashmha::cpu::FLASHMHA_ISA {

inline Vec abs(Vec v) {
  return (Vec)((IVec)v & 0x7fffffff);
}
inline Vec to_float(IVec v) {
  return __builtin_convertvector(v, Vec);
}
inline Vec from_bf16(HalfVec v) {
  return (Vec)(widen(v) << 16);
}

// mask lanes are all ones or all zeros, as comparisons give them.
inline Vec select(IVec mask, Vec if_set, Vec if_clear) {
  return mask ? if_set : if_clear;
}
inline Vec zero_where(IVec mask, Vec v) {
  return (Vec)(~mask & (IVec)v);
}

// lane_index()[i] == i
inline IVec lane_index() {
  IVec index = {};
  for (int i = 0; i < kLanes; ++i)
    index[i] = i;
  return index;
}

// Widening loads and narrowing (round to nearest even) stores of the 16-bit types. The forms with
// n touch only the first n elements (0 <= n <= kLanes); lanes beyond them are read as zero.
inline Vec load(const Bf16* p) {
  return from_bf16(load_half(&p->bits));
}
inline Vec load(const Fp16* p) {
  return from_fp16(load_half(&p->bits));
}
inline Vec load_n(const Bf16* p, int n) {
  return from_bf16(load_half_n(&p->bits, n));
}
inline Vec load_n(const Fp16* p, int n) {
  return from_fp16(load_half_n(&p->bits, n));
}
inline void store(Bf16* p, Vec v) {
  store_half(&p->bits, to_bf16(v));
}
inline void store(Fp16* p, Vec v) {
  store_half(&p->bits, to_fp16(v));
}
inline void store_n(Bf16* p, Vec v, int n) {
  store_half_n(&p->bits, to_bf16(v), n);
}
inline void store_n(Fp16* p, Vec v, int n) {
  store_half_n(&p->bits, to_fp16(v), n);
}

// One element, with the same conversions.
inline float load_one(const float* p) {
  return *p;
}
inline float load_one(const Bf16* p) {
  return load_n(p, 1)[0];
}
inline float load_one(const Fp16* p) {
  return load_n(p, 1)[0];
}
template <class T>
inline void store_one(T* p, float x) {
  store_n(p, set1(x), 1);
}

// Two vectors of elements at a time, each type in the order that costs least to widen: bf16 in
// memory is the upper half of a float, so the odd elements need a mask and the even ones a shift,
// where the natural order needs shuffles as well.
struct Pair {
  Vec first;
  Vec second;
};

template <class T>
inline Pair load_pair(const T* p) {
  return {load(p), load(p + kLanes)};
}
inline Pair load_pair(const Bf16* p) {
  const IVec words = load_words(p);
  return {(Vec)(words << 16), (Vec)(words & ~0xffff)};
}

inline void store_pair(float* p, Pair v) {
  store(p, v.first);
  store(p + kLanes, v.second);
}

template <int... Lane>
inline Pair evens_and_odds(Pair v, std::integer_sequence<int, Lane...>) {
  return {__builtin_shufflevector(v.first, v.second, (2 * Lane)...),
          __builtin_shufflevector(v.first, v.second, (2 * Lane + 1)...)};
}
template <int... Lane>
inline Pair interleaved(Pair v, std::integer_sequence<int, Lane...>) {
  return {__builtin_shufflevector(v.first, v.second, (Lane / 2 + Lane % 2 * kLanes)...),
          __builtin_shufflevector(v.first, v.second, ((Lane + kLanes) / 2 + Lane % 2 * kLanes)...)};
}

// From the natural order to that of load_pair(const T*), and back.
template <class T>
inline Pair to_pair_order(Pair v) {
  if constexpr (!std::is_same_v<T, Bf16>) return v;
  return evens_and_odds(v, std::make_integer_sequence<int, kLanes>{});
}
template <class T>
inline Pair from_pair_order(Pair v) {
  if constexpr (!std::is_same_v<T, Bf16>) return v;
  return interleaved(v, std::make_integer_sequence<int, kLanes>{});
}

// v with its lanes moved down by `Distance`, cyclically.
template <int Distance, int... Lane>
inline Vec rotate(Vec v, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(v, v, ((Lane + Distance) % kLanes)...);
}

// Horizontal reductions fold halves onto each other: log2(kLanes) steps in an order that is fixed
// for a tier.
template <int Width = kLanes / 2, class Fold>
inline float reduce(Vec v, Fold fold) {
  v = fold(v, rotate<Width>(v, std::make_integer_sequence<int, kLanes>{}));
  if constexpr (Width > 1) return reduce<Width / 2>(v, fold);
  return v[0];
}

inline float sum(Vec v) {
  return reduce(v, [](Vec a, Vec b) { return a + b; });
}
inline float highest(Vec v) {
  return reduce(v, [](Vec a, Vec b) { return max(a, b); });
}

// Numbers of whole blocks and of elements when rounded up to whole blocks.
inline int64_t blocks_of(int64_t count, int64_t block) {
  return (count + block - 1) / block;
}
inline int64_t round_up(int64_t count, int64_t block) {
  return blocks_of(count, block) * block;
}
inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
