#pragma once

// Rows of tensors, given by one pointer each, into panels and back. Compiled for a tier.

#include "cpu/scores.h"

namespace flashmha::cpu::FLASHMHA_ISA {

// The block of kLanes keys at rows[0..], dims [d, d + depth), transposed into a panel of K^T.
template <class T>
inline void transpose_keys(const T* const* rows, int64_t count, int64_t d, int64_t depth,
                           float* out) {
  Vec block[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) {
    if (j >= count) {
      block[j] = Vec{};
    } else {
      block[j] = depth == kLanes ? load(rows[j] + d) : load_n(rows[j] + d, static_cast<int>(depth));
    }
  }
  transpose(block);
  for (int64_t k = 0; k < depth; ++k)
    store(out + k * kTileColumns, block[k]);
}

template <class T>
inline void pack_key_panels(const T* const* rows, int64_t count, int64_t head_dim, float* panels) {
  for (int64_t first = 0; first < count; first += kTileColumns) {
    float* panel = panels + first * head_dim;
    for (int64_t v = 0; v < kTileColumns; v += kLanes) {
      const int64_t some = larger(0, smaller(kLanes, count - first - v));
      for (int64_t d = 0; d < head_dim; d += kLanes) {
        transpose_keys(rows + first + v, some, d, smaller(kLanes, head_dim - d),
                       panel + d * kTileColumns + v);
      }
    }
  }
}

// Row k of values goes to row k of every panel; columns beyond head_dim_v become 0.
template <class T>
inline bool pack_value_panels(const T* const* rows, int64_t count, int64_t head_dim_v,
                              int64_t capacity, float* panels) {
  const int64_t padded = round_up(head_dim_v, kTileColumns);
  Vec zero = {};
  for (int64_t k = 0; k < count; ++k) {
    const T* row = rows[k];
    for (int64_t d = 0; d < padded; d += kLanes) {
      const int64_t rest = head_dim_v - d;
      const Vec x = rest >= kLanes ? load(row + d)
                    : rest > 0     ? load_n(row + d, static_cast<int>(rest))
                                   : Vec{};
      zero += x * 0.0f;
      store(
          panels + d / kTileColumns * capacity * kTileColumns + k * kTileColumns + d % kTileColumns,
          x);
    }
  }
  return sum(zero) == 0.0f;
}

inline void scale_row(float* row, int64_t count, float factor) {
  for (int64_t d = 0; d < count; d += kLanes)
    store(row + d, load(row + d) * factor);
}

// out = in * scale, rounded to storage.
template <class T>
inline void store_row(const float* in, int64_t count, float scale, T* out) {
  int64_t d = 0;
  for (; d + kLanes <= count; d += kLanes)
    store(out + d, load(in + d) * scale);
  const int rest = static_cast<int>(count - d);
  if (rest > 0) store_n(out + d, load_n(in + d, rest) * scale, rest);
}

inline void store_rows(int64_t num_rows, int64_t num_columns, const float* in, int64_t in_stride,
                       float scale, Storage storage, void* out, int64_t out_stride) {
  visit_storage(storage, [&]<class T>(const T*) {
    for (int64_t r = 0; r < num_rows; ++r)
      store_row(in + r * in_stride, num_columns, scale, static_cast<T*>(out) + r * out_stride);
  });
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
