// From a product q k^T to the scores of the softmax: cap, ALiBi, bias, masks, and the dropout of
// the probabilities. The counterpart of src/reference/head.h.
#pragma once

#include <cmath>

#include "attention/mask.h"
#include "attention/philox.h"
#include "cuda/algo/score_params.h"
#include "cuda/tile/mma.cuh"

namespace flashmha::cuda {

template <class T>
__device__ __forceinline__ float element_of(const PerHead& values, std::int64_t batch,
                                            std::int64_t head) {
  const std::int64_t at = batch * values.batch_stride + head * values.head_stride;
  return values.is_float32 ? static_cast<const float*>(values.data)[at]
                           : widen(static_cast<const T*>(values.data)[at]);
}

// One thread's part of a tile of scores: kRowTiles x kColumnTiles accumulators, whose element e of
// tile (m, n) is in row 16 m + lane / 4 + 8 (e / 2), column 8 n + 2 (lane % 4) + e % 2.
template <int kRowTiles, int kColumnTiles>
struct ScoreTile {
  Accumulator value[kRowTiles][kColumnTiles];

  static __device__ __forceinline__ int row_of(int m, int e, int lane) {
    return 16 * m + lane / 4 + 8 * (e / 2);
  }
  static __device__ __forceinline__ int column_of(int n, int e, int lane) {
    return 8 * n + 2 * (lane % 4) + e % 2;
  }

  // f(score, row, column), with both positions counted from the tile's corner.
  template <class F>
  __device__ __forceinline__ void for_each(int lane, F f) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          f(value[m][n][e], row_of(m, e, lane), column_of(n, e, lane));
      }
    }
  }

  __device__ __forceinline__ void clear() {
    for_each(0, [](float& score, int, int) { score = 0.0f; });
  }

  // Hides the keys that a row does not see. The tile's corner is (first_row, first_column); rows
  // behind seqlen_q see nothing.
  __device__ __forceinline__ void apply_band(const SequenceBand& band, int first_row,
                                             int first_column, int seqlen_q, int lane) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + row_of(m, 2 * half, lane);
        const int begin = static_cast<int>(band.begin(row)) - first_column;
        const int end = row < seqlen_q ? static_cast<int>(band.end(row)) - first_column : 0;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            const int column = column_of(n, e, lane);
            if (column < begin || column >= end) value[m][n][e] = -INFINITY;
          }
        }
      }
    }
  }

  // Products become scores, before masking. `shift` aligns ALiBi; elements outside of the sequence
  // are left alone.
  template <class T>
  __device__ __forceinline__ void apply_options(const ScoreParams& params, std::int64_t batch,
                                                std::int64_t head, const SequenceBand& band,
                                                int first_row, int first_column, int seqlen_q,
                                                int lane) {
    const float scale = params.softmax_scale;
    for_each(lane, [&](float& score, int, int) { score *= scale; });
    if (params.softcap > 0.0f) {
      const float cap = params.softcap;
      for_each(lane, [&](float& score, int, int) { score = cap * tanhf(score / cap); });
    }
    if (params.alibi.data) {
      const float slope = element_of<T>(params.alibi, batch, head);
      const int shift = static_cast<int>(band.shift) + first_row - first_column;
      for_each(lane, [&](float& score, int row, int column) {
        score -= slope * static_cast<float>(abs(row + shift - column));
      });
    }
    const int num_rows = seqlen_q - first_row;
    const int num_columns = static_cast<int>(band.seqlen_k) - first_column;
    if (params.bias.data) {
      const PairMap& bias = params.bias;
      const std::int64_t corner = corner_of(bias, batch, head, first_row, first_column);
      for_each(lane, [&](float& score, int row, int column) {
        if (row >= num_rows || column >= num_columns) return;
        const std::int64_t at = corner + row * bias.row_stride + column * bias.column_stride;
        score += bias.is_float32 ? static_cast<const float*>(bias.data)[at]
                                 : widen(static_cast<const T*>(bias.data)[at]);
      });
    }
    if (params.mask.data) {
      const PairMap& mask = params.mask;
      const std::int64_t corner = corner_of(mask, batch, head, first_row, first_column);
      for_each(lane, [&](float& score, int row, int column) {
        if (row >= num_rows || column >= num_columns) return;
        const std::int64_t at = corner + row * mask.row_stride + column * mask.column_stride;
        if (static_cast<const std::uint8_t*>(mask.data)[at] == 0) score = -INFINITY;
      });
    }
  }

  // Zeroes what is dropped. One Philox block decides one row of one column tile; the four threads
  // that share it compute one block each for four neighbouring column tiles.
  __device__ __forceinline__ void apply_dropout(const DropoutRows& rows, int first_row,
                                                int first_column, int lane) {
    static_assert(DropoutRows::kColumnsPerBlock == 8 && kColumnTiles % 4 == 0);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + row_of(m, 2 * half, lane);
#pragma unroll
        for (int group = 0; group < kColumnTiles; group += 4) {
          const std::uint32_t bits = rows.keep_bits(row, first_column / 8 + group + lane % 4);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const std::uint32_t keep = __shfl_sync(0xFFFFFFFFu, bits, lane / 4 * 4 + i);
            Accumulator& tile = value[m][group + i];
            if (!(keep >> (2 * (lane % 4)) & 1u)) tile[2 * half] = 0.0f;
            if (!(keep >> (2 * (lane % 4) + 1) & 1u)) tile[2 * half + 1] = 0.0f;
          }
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ std::int64_t corner_of(const PairMap& map, std::int64_t batch,
                                                           std::int64_t head, int row, int column) {
    return batch * map.batch_stride + head * map.head_stride + row * map.row_stride +
           column * map.column_stride;
  }
};

}  // namespace flashmha::cuda
