#pragma once

// Copies operands of the matrix products into the layouts that microkernel.h reads, widening 16-bit
// storage to float on the way. `T` is float, Bf16 or Fp16; strides are in elements.
//
// A panel is kTileColumns columns of B: row k lies at panel + k * kTileColumns. A block of B with
// more columns is a sequence of panels, each num_rows * kTileColumns floats; columns beyond the
// last real one are zero, so the kernels always load whole vectors. Panels should be 64-byte
// aligned.

#include "cpu/simd.h"

namespace flashmha::cpu::FLASHMHA_ISA {

constexpr int kTileColumns = kTileVectors * kLanes;

// out[i][j] = in[i][j] * scale, for the left operand and for rows in place.
template <class T>
inline void widen_rows(const T* in, int64_t in_stride, int64_t num_rows, int64_t num_columns,
                       float scale, float* out, int64_t out_stride) {
  const Vec factor = set1(scale);
  for (int64_t i = 0; i < num_rows; ++i) {
    const T* row = in + i * in_stride;
    float* to = out + i * out_stride;
    int64_t j = 0;
    for (; j + kLanes <= num_columns; j += kLanes)
      store(to + j, load(row + j) * factor);
    const int rest = static_cast<int>(num_columns - j);
    if (rest > 0) store_n(to + j, load_n(row + j, rest) * factor, rest);
  }
}

// One panel from rows that lie as B's rows do: panel[k][j] = in[k][j], num_columns <= kTileColumns.
template <class T>
inline void pack_panel(const T* in, int64_t in_stride, int64_t num_rows, int64_t num_columns,
                       float* panel) {
  if (num_columns == kTileColumns) {
    for (int64_t k = 0; k < num_rows; ++k) {
      for (int v = 0; v < kTileVectors; ++v) {
        store(panel + k * kTileColumns + v * kLanes, load(in + k * in_stride + v * kLanes));
      }
    }
    return;
  }
  for (int64_t k = 0; k < num_rows; ++k) {
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t rest = num_columns - v * kLanes;
      const int valid = static_cast<int>(rest < 0 ? 0 : smaller(rest, kLanes));
      const T* from = in + k * in_stride + v * kLanes;
      store(panel + k * kTileColumns + v * kLanes, valid > 0 ? load_n(from, valid) : Vec{});
    }
  }
}

// Depth of the block that transposed_block makes: a vector of 32-bit words of each row.
template <class T>
constexpr int kBlockDepth = kLanes;
template <>
constexpr int kBlockDepth<Bf16> = 2 * kLanes;

// out[k] lane j = in[j][k] for j < num_columns (zero beyond), k < depth <= kBlockDepth.
template <class T>
inline void transposed_block(const T* in, int64_t in_stride, int64_t depth, int64_t num_columns,
                             Vec (&out)[kLanes]) {
  if (depth == kLanes && num_columns == kLanes) {
    for (int j = 0; j < kLanes; ++j)
      out[j] = load(in + j * in_stride);
  } else {
    for (int j = 0; j < kLanes; ++j) {
      const bool present = j < num_columns && depth > 0;
      out[j] = present ? load_n(in + j * in_stride, static_cast<int>(depth)) : Vec{};
    }
  }
  transpose(out);
}

// bf16 is transposed as pairs, (2k, 2k + 1) in a word, and widened after: half the shuffles.
inline void transposed_block(const Bf16* in, int64_t in_stride, int64_t depth, int64_t num_columns,
                             Vec (&out)[2 * kLanes]) {
  if (depth < 2 * kLanes || num_columns < kLanes) {
    Vec low[kLanes], high[kLanes];
    transposed_block<Bf16>(in, in_stride, smaller(depth, kLanes), num_columns, low);
    transposed_block<Bf16>(in + kLanes, in_stride, depth - kLanes, num_columns, high);
    for (int k = 0; k < kLanes; ++k)
      out[k] = low[k], out[kLanes + k] = high[k];
    return;
  }
  Vec pairs[kLanes];
  for (int j = 0; j < kLanes; ++j)
    pairs[j] = (Vec)load_words(in + j * in_stride);
  transpose(pairs);
  for (int k = 0; k < kLanes; ++k) {
    out[2 * k] = (Vec)((IVec)pairs[k] << 16);
    out[2 * k + 1] = (Vec)((IVec)pairs[k] & -0x10000);
  }
}

// One panel from rows that are B's columns (K of Q K^T): panel[k][j] = in[j][k],
// num_columns <= kTileColumns of them, each with num_rows contiguous elements.
template <class T>
inline void pack_panel_transposed(const T* in, int64_t in_stride, int64_t num_rows,
                                  int64_t num_columns, float* panel) {
  for (int64_t k = 0; k < num_rows; k += kBlockDepth<T>) {
    const int64_t depth = smaller(kBlockDepth<T>, num_rows - k);
    for (int v = 0; v < kTileVectors; ++v) {
      Vec block[kBlockDepth<T>];
      transposed_block(in + v * kLanes * in_stride + k, in_stride, depth, num_columns - v * kLanes,
                       block);
      float* to = panel + k * kTileColumns + v * kLanes;
      if (depth == kBlockDepth<T>) {
        for (int d = 0; d < kBlockDepth<T>; ++d)
          store(to + d * kTileColumns, block[d]);
      } else {
        for (int d = 0; d < depth; ++d)
          store(to + d * kTileColumns, block[d]);
      }
    }
  }
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
