#pragma once

// C (+)= A B in float, the inner loop of everything: attention's five products and the layers'.
//
// The register tile is kTileRows x kTileColumns: its accumulators stay in registers over the whole
// depth, every step loads kTileVectors vectors of B, broadcasts kTileRows elements of A and issues
// kTileRows * kTileVectors FMAs. An element of C is one chain of FMAs in the order of k, starting
// from C itself when accumulating: its bits depend neither on the tile it falls into nor on how the
// depth is cut into calls.

#include "cpu/pack.h"

namespace flashmha::cpu::FLASHMHA_ISA {

// How the left operand lies in memory.
enum class Left {
  kRows,     // A[i][k] at data + i * stride + k: Q, P, dS
  kColumns,  // A[i][k] at data + k * stride + i: P^T, dS^T read from P, dS
};

struct LeftView {
  const float* data;
  int64_t stride;
};

// B as panels (pack.h), or rows in place: panel_stride = kTileColumns and row_stride that of the
// rows. Whole vectors are read, so columns up to the next multiple of kLanes must be readable.
struct RightView {
  const float* data;
  int64_t panel_stride;
  int64_t row_stride;
};

inline RightView panels_view(const float* panels, int64_t num_rows) {
  return {panels, num_rows * kTileColumns, kTileColumns};
}
inline RightView in_place_view(const float* rows, int64_t row_stride) {
  return {rows, kTileColumns, row_stride};
}

struct OutView {
  float* data;
  int64_t stride;
};

struct ProductSize {
  int64_t m, n, k;
};

// One register tile: Rows x (Vectors * kLanes) of which the last vector has `last` valid columns,
// or, kWhole, all of them: then nothing has to be asked before and after the loop.
template <Left kLeft, bool kAccumulate, int Rows, int Vectors, bool kWhole>
[[gnu::noinline]] void multiply_tile(int64_t k, LeftView a, const float* b, int64_t b_stride,
                                     OutView c, int last) {
  Vec acc[Rows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    // The rows below are the next tile's.
    if constexpr (kAccumulate) __builtin_prefetch(c.data + (i + Rows) * c.stride, 1);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      const float* from = c.data + i * c.stride + v * kLanes;
      const bool whole = kWhole || v + 1 < Vectors || last == kLanes;
      acc[i][v] = kAccumulate ? (whole ? load(from) : load_n(from, last)) : Vec{};
    }
  }
  const int64_t row = kLeft == Left::kRows ? a.stride : 1;
  const int64_t step = kLeft == Left::kRows ? 1 : a.stride;
  for (int64_t depth = 0; depth < k; ++depth) {
    Vec right[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v)
      right[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Vec left = set1(a.data[i * row]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v)
        acc[i][v] = fma(left, right[v], acc[i][v]);
    }
    a.data += step;
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      float* to = c.data + i * c.stride + v * kLanes;
      const bool whole = kWhole || v + 1 < Vectors || last == kLanes;
      whole ? store(to, acc[i][v]) : store_n(to, acc[i][v], last);
    }
  }
}

using TileKernel = void (*)(int64_t, LeftView, const float*, int64_t, OutView, int);

// The tile kernels of every height and width, [rows - 1][vectors - 1], and [rows - 1] those of the
// full width.
template <Left kLeft, bool kAccumulate>
struct TileKernels {
  TileKernel of[kTileRows][kTileVectors];
  TileKernel whole[kTileRows];

  constexpr TileKernels() : of{}, whole{} {
    fill(std::make_integer_sequence<int, kTileRows * kTileVectors>{});
    fill_whole(std::make_integer_sequence<int, kTileRows>{});
  }

  template <int... Index>
  constexpr void fill(std::integer_sequence<int, Index...>) {
    ((of[Index / kTileVectors][Index % kTileVectors] =
          multiply_tile<kLeft, kAccumulate, Index / kTileVectors + 1, Index % kTileVectors + 1,
                        false>),
     ...);
  }
  template <int... Index>
  constexpr void fill_whole(std::integer_sequence<int, Index...>) {
    ((whole[Index] = multiply_tile<kLeft, kAccumulate, Index + 1, kTileVectors, true>), ...);
  }
};

// C[m, n] (+)= A[m, k] B[k, n]. Writes exactly m x n elements of C. Rows are cut into tiles of
// nearly equal height (7 = 4 + 3, not 6 + 1): a tile of one row is bound by the FMA's latency.
template <Left kLeft, bool kAccumulate>
inline void multiply(ProductSize size, LeftView a, RightView b, OutView c) {
  static constexpr TileKernels<kLeft, kAccumulate> kKernels{};
  const int64_t num_tiles = blocks_of(size.m, kTileRows);
  for (int64_t j = 0; j < size.n; j += kTileColumns) {
    const int64_t columns = smaller(kTileColumns, size.n - j);
    const int vectors = static_cast<int>(blocks_of(columns, kLanes));
    const int last = static_cast<int>(columns - (vectors - 1) * kLanes);
    for (int64_t tile = 0, i = 0; tile < num_tiles; ++tile) {
      const int64_t rows = blocks_of(size.m - i, num_tiles - tile);
      const LeftView left = {a.data + i * (kLeft == Left::kRows ? a.stride : 1), a.stride};
      const OutView out = {c.data + i * c.stride + j, c.stride};
      const TileKernel kernel =
          columns == kTileColumns ? kKernels.whole[rows - 1] : kKernels.of[rows - 1][vectors - 1];
      kernel(size.k, left, b.data, b.row_stride, out, last);
      i += rows;
    }
    b.data += b.panel_stride;
  }
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
