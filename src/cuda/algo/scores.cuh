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
// tile (m, n) is in row 16 m + lane / 4 + 8 (e / 2), column 8 n + 2 (lane % 4) + e % 2. Rows are
// queries and columns keys, or the other way round. Positions are given by the tile's corner.
template <int kRowTiles, int kColumnTiles, bool kTransposed = false>
struct ScoreTile {
  Accumulator value[kRowTiles][kColumnTiles];

  static __device__ __forceinline__ int row_of(int m, int e, int lane) {
    return 16 * m + lane / 4 + 8 * (e / 2);
  }
  static __device__ __forceinline__ int column_of(int n, int e, int lane) {
    return 8 * n + 2 * (lane % 4) + e % 2;
  }

  // f(score, query, key), with both positions counted from the tile's corner.
  template <class F>
  __device__ __forceinline__ void for_each(int lane, F f) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = row_of(m, e, lane);
          const int column = column_of(n, e, lane);
          f(value[m][n][e], kTransposed ? column : row, kTransposed ? row : column);
        }
      }
    }
  }

  __device__ __forceinline__ void clear() {
    for_each(0, [](float& score, int, int) { score = 0.0f; });
  }

  // Hides the keys that a query does not see. Queries behind seqlen_q see nothing.
  __device__ __forceinline__ void apply_band(const SequenceBand& band, int first_query,
                                             int first_key, int seqlen_q, int lane) {
    constexpr int kLines = kTransposed ? kColumnTiles : kRowTiles;  // along the queries
    constexpr int kTiles = kTransposed ? kRowTiles : kColumnTiles;  // along the keys
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = first_query + (kTransposed ? column_of(line, half, lane)
                                                     : row_of(line, 2 * half, lane));
        const int begin = static_cast<int>(band.begin(query)) - first_key;
        const int end = query < seqlen_q ? static_cast<int>(band.end(query)) - first_key : 0;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int e = kTransposed ? 2 * i + half : 2 * half + i;
            const int key = kTransposed ? row_of(tile, e, lane) : column_of(tile, e, lane);
            float& score = kTransposed ? value[tile][line][e] : value[line][tile][e];
            if (key < begin || key >= end) score = -INFINITY;
          }
        }
      }
    }
  }

  // Products become scores, before the band hides any. Elements outside of the sequence get no bias
  // and no mask. `slope`, if given, receives the derivative of the softcap.
  template <class T>
  __device__ __forceinline__ void apply_options(const ScoreParams& params, std::int64_t batch,
                                                std::int64_t head, const SequenceBand& band,
                                                int first_query, int first_key, int seqlen_q,
                                                int lane, ScoreTile* slope = nullptr) {
    const float scale = params.softmax_scale;
    for_each(lane, [&](float& score, int, int) { score *= scale; });
    if (params.softcap > 0.0f) apply_softcap(params.softcap, slope);
    if (params.alibi.data) {
      const float gradient = element_of<T>(params.alibi, batch, head);
      const int shift = static_cast<int>(band.shift) + first_query - first_key;
      for_each(lane, [&](float& score, int query, int key) {
        score -= gradient * static_cast<float>(abs(query + shift - key));
      });
    }
    const int num_queries = seqlen_q - first_query;
    const int num_keys = static_cast<int>(band.seqlen_k) - first_key;
    if (params.bias.data) {
      const PairMap& bias = params.bias;
      const std::int64_t corner = corner_of(bias, batch, head, first_query, first_key);
      for_each(lane, [&](float& score, int query, int key) {
        if (query >= num_queries || key >= num_keys) return;
        const std::int64_t at = corner + query * bias.row_stride + key * bias.column_stride;
        score += bias.is_float32 ? static_cast<const float*>(bias.data)[at]
                                 : widen(static_cast<const T*>(bias.data)[at]);
      });
    }
    if (params.mask.data) {
      const PairMap& mask = params.mask;
      const std::int64_t corner = corner_of(mask, batch, head, first_query, first_key);
      for_each(lane, [&](float& score, int query, int key) {
        if (query >= num_queries || key >= num_keys) return;
        const std::int64_t at = corner + query * mask.row_stride + key * mask.column_stride;
        if (static_cast<const std::uint8_t*>(mask.data)[at] == 0) score = -INFINITY;
      });
    }
  }

  // Bit 4 n + e says whether dropout keeps element e of tile (0, n). One Philox block decides 8
  // neighbouring keys of one query: threads that need the same blocks compute one each and share.
  __device__ __forceinline__ std::uint32_t keep_mask(const DropoutRows& dropout, int first_query,
                                                     int first_key, int lane) const {
    static_assert(DropoutRows::kColumnsPerBlock == 8 && kRowTiles == 1 && kColumnTiles <= 8 &&
                  kColumnTiles % 4 == 0);
    // Without transposition the four threads of a row share, each with a column tile of its own;
    // with it the eight threads of a column, each with a query of its own.
    constexpr int kSharing = kTransposed ? 8 : 4;
    constexpr int kBlocks = kTransposed ? 2 * kColumnTiles : kColumnTiles;  // a half needs
    const int own = kTransposed ? lane / 4 : lane % 4;
    std::uint32_t keep = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int group = 0; group < kBlocks; group += kSharing) {
        const int block = group + own;
        const int query =
            kTransposed ? column_of(block / 2, block % 2, lane) : row_of(0, 2 * half, lane);
        const int key_block = first_key / 8 + (kTransposed ? half : block);
        const std::uint32_t bits = dropout.keep_bits(first_query + query, key_block);
#pragma unroll
        for (int i = 0; i < kSharing; ++i) {
          const int source = kTransposed ? 4 * i + lane % 4 : lane / 4 * 4 + i;
          const std::uint32_t shared = __shfl_sync(0xFFFFFFFFu, bits, source);
          if constexpr (kTransposed) {
            const int n = (group + i) / 2;
            keep |= (shared >> (lane / 4) & 1u) << (4 * n + 2 * half + (group + i) % 2);
          } else {
            keep |= (shared >> (2 * (lane % 4)) & 3u) << (4 * (group + i) + 2 * half);
          }
        }
      }
    }
    return keep;
  }

  // Zeroes what is dropped.
  __device__ __forceinline__ void apply_dropout(const DropoutRows& dropout, int first_query,
                                                int first_key, int lane) {
    const std::uint32_t keep = keep_mask(dropout, first_query, first_key, lane);
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (!(keep >> (4 * n + e) & 1u)) value[0][n][e] = 0.0f;
      }
    }
  }

 private:
  __device__ __forceinline__ void apply_softcap(float cap, ScoreTile* slope) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float tangent = tanhf(value[m][n][e] / cap);
          value[m][n][e] = cap * tangent;
          if (slope != nullptr) slope->value[m][n][e] = 1.0f - tangent * tangent;
        }
      }
    }
  }

  static __device__ __forceinline__ std::int64_t corner_of(const PairMap& map, std::int64_t batch,
                                                           std::int64_t head, int query, int key) {
    return batch * map.batch_stride + head * map.head_stride + query * map.row_stride +
           key * map.column_stride;
  }
};

}  // namespace flashmha::cuda
