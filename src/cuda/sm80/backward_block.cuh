// What the portable backward kernels (backward.cuh) share: one block of threads keeps a pair of
// tiles in shared memory, streams pairs of the other side past it, and makes of every two pairs the
// probabilities and the gradients of the scores.
#pragma once

#include "cuda/algo/move_tile.cuh"
#include "cuda/algo/sequence.cuh"
#include "cuda/algo/softmax.cuh"
#include "cuda/sm80/backward_params.h"

namespace flashmha::cuda {

template <class T, int head_dim, bool general, Gradient gradient>
struct BackwardConfig {
  using Element = T;
  static constexpr int kHeadDim = head_dim;
  static constexpr bool kGeneral = general;
  static constexpr bool kOfAll = gradient == Gradient::all;
  static constexpr bool kOfBias = gradient == Gradient::bias;
  static constexpr bool kOfQueries = gradient == Gradient::q;
  static constexpr bool kOfKeys =
      gradient == Gradient::k || gradient == Gradient::k_and_v || kOfAll;
  static constexpr bool kOfValues =
      gradient == Gradient::v || gradient == Gradient::k_and_v || kOfAll;
  static constexpr bool kTransposed = kOfKeys || kOfValues;  // rows of the scores are keys
  static constexpr bool kNeedsDs = gradient != Gradient::v;
  static constexpr int kNumWarps = kOfAll ? 8 : 4;
  static constexpr int kNumThreads = 32 * kNumWarps;
  // Warps that share rows of the kept tiles: by queries, then by columns of what is added up.
  static constexpr int kColumnWarps = kOfAll ? 2 : 1;
  static constexpr int kRowWarps = kNumWarps / kColumnWarps;
  static constexpr int kRowTiles = kOfAll && head_dim <= 128 ? 2 : 1;  // of 16 rows, a warp
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kKept = kWarpRows * kRowWarps;  // rows of the kept tiles
  static constexpr int kStreamed = kOfAll ? rows_of_all(head_dim) : head_dim <= 128 ? 64 : 32;
  static constexpr int kQueries = kTransposed ? kStreamed : kKept;  // in a tile
  static constexpr int kKeys = kTransposed ? kKept : kStreamed;
  // Two: the next pair arrives while the last one is multiplied.
  static constexpr int kStages = (head_dim <= 128 && !kOfBias) || kOfAll ? 2 : 1;
  static constexpr int kKeptBytes = kKept * head_dim * 2;
  static constexpr int kStreamedBytes = kStreamed * head_dim * 2;
  static constexpr int kDsOffset = 2 * kKeptBytes + 2 * kStages * kStreamedBytes;
  static constexpr int kExchangedBytes = kKept * kStreamed * 2;
  static constexpr int kRowsOffset = kDsOffset + (kOfAll ? 2 * kExchangedBytes : 0);
  static constexpr int kSharedBytes =
      kRowsOffset + (kTransposed ? kStages : 1) * 2 * kQueries * static_cast<int>(sizeof(float));
  static_assert(!kOfAll || kSharedBytes == shared_bytes_of_all(head_dim));
};

// One block's work on one head of one sequence. "First" tiles are Q or K, "second" ones dO or V.
template <class Config>
struct BackwardBlock {
  using T = typename Config::Element;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kScored = Config::kStreamed / Config::kColumnWarps;  // rows of one warp
  static constexpr int kColumnTiles = kScored / 8;
  static constexpr int kOutColumns = kHeadDim / Config::kColumnWarps;
  static constexpr int kOutTiles = kOutColumns / 8;
  static constexpr bool kTransposed = Config::kTransposed;
  static constexpr bool kAlone = Config::kColumnWarps == 1;  // with its rows: offsets are constants
  static constexpr int kRowTiles = Config::kRowTiles;
  using Tile = SharedTile<kHeadDim>;
  using Scores = ScoreTile<kRowTiles, kColumnTiles, kTransposed>;
  using Sums = Accumulator[kRowTiles][kOutTiles];

  const BackwardParams& params;
  const ForwardParams& forward;
  const Sequence sequence;
  const int head_kv;
  const int first_kept;
  const int seqlen_q;
  const int seqlen_k;
  const SequenceBand band;
  std::uint8_t* const shared;
  const Tile kept_first, kept_second;
  const int thread, lane, warp_row, column_warp;

  __device__ BackwardBlock(const BackwardParams& the_params, const Sequence& the_sequence,
                           int the_head_kv, int row, std::uint8_t* the_shared)
      : params(the_params),
        forward(the_params.forward),
        sequence(the_sequence),
        head_kv(the_head_kv),
        first_kept(row),
        seqlen_q(static_cast<int>(sequence.seqlen_q)),
        seqlen_k(static_cast<int>(sequence.seqlen_k)),
        band(forward.band, sequence.seqlen_q, sequence.seqlen_k),
        shared(the_shared),
        kept_first(the_shared),
        kept_second(the_shared + Config::kKeptBytes),
        thread(static_cast<int>(threadIdx.x)),
        lane(thread % 32),
        warp_row((kAlone ? thread / 32 : thread / 32 % Config::kRowWarps) * Config::kWarpRows),
        column_warp(kAlone ? 0 : thread / 32 / Config::kRowWarps) {}

  __device__ __forceinline__ Tile streamed_first(int stage) const {
    return Tile(kept_first.address + 2 * Config::kKeptBytes + 2 * stage * Config::kStreamedBytes);
  }
  __device__ __forceinline__ Tile streamed_second(int stage) const {
    return Tile(streamed_first(stage).address + Config::kStreamedBytes);
  }
  // lse of the queries of a stage, then their delta.
  __device__ __forceinline__ float* row_values(int stage) const {
    return reinterpret_cast<float*>(shared + Config::kRowsOffset) + 2 * stage * Config::kQueries;
  }

  __device__ __forceinline__ T* query_rows(const Rows& rows, int head) const {
    return static_cast<T*>(rows.data) + sequence.batch * rows.outer_stride +
           sequence.first_row_q * rows.row_stride + head * rows.head_stride;
  }
  __device__ __forceinline__ T* key_rows(const Rows& rows) const {
    return static_cast<T*>(rows.data) + sequence.batch_index_k * rows.outer_stride +
           sequence.first_row_k * rows.row_stride + head_kv * rows.head_stride;
  }

  template <int kRows>
  __device__ __forceinline__ void load(const Tile& tile, const Rows& rows, T* data, int first,
                                       int limit, int columns) const {
    load_tile<kRows, Config::kNumThreads, Config::kGeneral>(
        tile, EvenRows<T>{data, rows.row_stride}, first, limit, columns, rows.aligned, thread);
  }
  // Queries [first, first + kQueries) with their gradients, lse and delta.
  __device__ __forceinline__ void load_queries(const Tile& first_tile, const Tile& second_tile,
                                               float* values, int head, int first) const {
    load<Config::kQueries>(first_tile, forward.q, query_rows(forward.q, head), first, seqlen_q,
                           forward.head_dim);
    load<Config::kQueries>(second_tile, params.dout, query_rows(params.dout, head), first, seqlen_q,
                           forward.head_dim_v);
    const std::int64_t at = sequence.first_row_q + first;
    const std::int64_t offset =
        sequence.batch * params.delta.batch_stride + head * params.delta.head_stride + at;
    const float* lse_log2 = params.lse_log2.data + offset;
    const float* delta = params.delta.data + offset;
#pragma unroll
    for (int i = thread; i < 2 * Config::kQueries; i += Config::kNumThreads) {
      const int row = i % Config::kQueries;
      const bool present = first + row < seqlen_q;
      const float* source = (i < Config::kQueries ? lse_log2 : delta) + row;
      copy_float(values + i, present ? source : params.delta.data, present);
    }
  }
  __device__ __forceinline__ void load_keys(const Tile& first_tile, const Tile& second_tile,
                                            int first) const {
    load<Config::kKeys>(first_tile, forward.k, key_rows(forward.k), first, seqlen_k,
                        forward.head_dim);
    load<Config::kKeys>(second_tile, forward.v, key_rows(forward.v), first, seqlen_k,
                        forward.head_dim_v);
  }

  // scores = kept streamed^T of this warp's rows.
  __device__ __forceinline__ void multiply(const Tile& kept, const Tile& streamed,
                                           Scores& scores) const {
    scores.clear();
#pragma unroll
    for (int d = 0; d < kHeadDim; d += 16) {
      FragmentA a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
        kept.load_a(warp_row + 16 * m, d, lane, a[m]);
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t b[4];
        streamed.load_b(column_warp * kScored + 8 * n, d, lane, b);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma<T>(scores.value[m][n], a[m], b[0], b[1]);
          mma<T>(scores.value[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // sums += weights streamed, of 16 streamed rows.
  __device__ __forceinline__ void add_rows(const FragmentA (&weights)[kRowTiles],
                                           const Tile& streamed, int row, Sums& sums) const {
#pragma unroll
    for (int n = 0; n < kOutTiles; n += 2) {
      std::uint32_t b[4];
      streamed.load_b_transposed(row, column_warp * kOutColumns + 8 * n, lane, b);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        mma<T>(sums[m][n], weights[m], b[0], b[1]);
        mma<T>(sums[m][n + 1], weights[m], b[2], b[3]);
      }
    }
  }
  // The same of all streamed rows, with the weights rounded.
  __device__ __forceinline__ void add_product(const Scores& weights, const Tile& streamed,
                                              Sums& sums) const {
#pragma unroll
    for (int row = 0; row < kScored; row += 16) {
      FragmentA a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
        pack_fragment<T>(weights.value[m][row / 8], weights.value[m][row / 8 + 1], a[m]);
      add_rows(a, streamed, row, sums);
    }
  }

  // Of the pairs of the kept tiles with the streamed ones: the probabilities, dropped and scaled as
  // dropout says, and the gradients of the scores. The tiles begin at these positions; `slope`
  // receives what a softcap multiplies the gradient of a product with.
  __device__ __forceinline__ void make_pairs(int stage, int head, int first_query, int first_key,
                                             Scores& p, Scores& ds, Scores& slope) const {
    // This warp's corner.
    const int query = first_query + (kTransposed ? column_warp * kScored : warp_row);
    const int key = first_key + (kTransposed ? warp_row : 0);
    multiply(kept_first, streamed_first(stage), p);
    if constexpr (Config::kGeneral) {
      p.template apply_options<T>(forward.scores, sequence.batch, head, band, query, key, seqlen_q,
                                  lane, Config::kNeedsDs ? &slope : nullptr);
    }
    const int last_query = min(first_query + Config::kQueries, seqlen_q) - 1;
    const KeyRange everybody = band.keys_of_all(first_query, last_query);
    if (first_key < everybody.begin || first_key + Config::kKeys > everybody.end) {
      p.apply_band(band, query, key, seqlen_q, lane);
    }
    if constexpr (Config::kNeedsDs) multiply(kept_second, streamed_second(stage), ds);
    finish_pairs(row_values(kTransposed ? stage : 0), head, first_query, query, key, p, ds);
  }

  // Of one query. Behind the last one everything is 0, and so is what comes of it; only a bias or
  // ALiBi could make its probabilities infinite.
  struct QueryRow {
    float lse_log2;
    float delta;
  };
  __device__ __forceinline__ QueryRow query_row(const float* values, int row, bool exists) const {
    const bool sees = !Config::kGeneral || exists;
    return {sees ? values[row] : INFINITY, values[Config::kQueries + row]};
  }

  // Scores become probabilities; ds, which holds dO V^T, becomes the gradient of the scores.
  __device__ __forceinline__ void finish_pairs(const float* values, int head, int tile_query,
                                               int first_query, int first_key, Scores& p,
                                               Scores& ds) const {
    const ScoreParams& options = forward.scores;
    const float scale_log2 = Config::kGeneral ? kLog2E : options.softmax_scale * kLog2E;
    const bool drops = Config::kGeneral && options.dropout.p > 0.0f;
    float keep_scale = 1.0f;
    std::uint64_t keep = ~std::uint64_t{0};
    if constexpr (Config::kGeneral) {
      if (drops) {
        const DropoutRows dropout(options.dropout, sequence.batch * forward.num_heads_q + head);
        keep = p.keep_mask(dropout, first_query, first_key, lane);
        keep_scale = 1.0f / (1.0f - options.dropout.p);
      }
    }
    static_assert(kRowTiles == 1 || (kTransposed && !Config::kGeneral));
    QueryRow rows[2];  // of the accumulators' two rows, or two columns
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int query =
            kTransposed ? Scores::column_of(n, i, lane) : Scores::row_of(0, 2 * i, lane);
        if (kTransposed || n == 0) {
          rows[i] =
              query_row(values, first_query - tile_query + query, first_query + query < seqlen_q);
        }
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const QueryRow& row = rows[kTransposed ? e % 2 : e / 2];
          float& probability = p.value[m][n][e];
          probability = exp2_fast(fmaf(probability, scale_log2, -row.lse_log2));
          const bool kept = !drops || (keep >> (4 * n + e) & 1u);
          if constexpr (Config::kNeedsDs) {
            float& gradient = ds.value[m][n][e];
            const float dp = kept ? (drops ? gradient * keep_scale : gradient) : 0.0f;
            gradient = probability * (dp - row.delta);
          }
          if (drops) probability = kept ? probability * keep_scale : 0.0f;
        }
      }
    }
  }

  // Gradients of scores become gradients of what the softcap was applied to.
  __device__ __forceinline__ void undo_softcap(Scores& ds, const Scores& slope) const {
    if constexpr (Config::kGeneral) {
      if (forward.scores.softcap <= 0.0f) return;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          ds.value[0][n][e] *= slope.value[0][n][e];
      }
    }
  }

  // Writes this warp's rows by way of its part of a kept tile, which nobody reads any more. Rows
  // that are allocated but not used become 0.
  __device__ __forceinline__ void store(const Sums& sums, float factor, const Tile& tile,
                                        const Rows& rows, T* data, int columns) const {
    const int length = kTransposed ? seqlen_k : seqlen_q;
    const std::int64_t allocated = kTransposed ? sequence.allocated_k : sequence.allocated_q;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int tile_row = warp_row + Scores::row_of(m, 2 * half, lane);
        const bool real = first_kept + tile_row < length;
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
          tile.store_pair(tile_row, column_warp * kOutColumns + Scores::column_of(n, 0, lane),
                          pack<T>(real ? sums[m][n][2 * half] * factor : 0.0f,
                                  real ? sums[m][n][2 * half + 1] * factor : 0.0f));
        }
      }
    }
    constexpr int kRows = Config::kWarpRows / Config::kColumnWarps;
    if constexpr (kAlone) {
      __syncwarp();
    } else {
      __syncthreads();
    }
    store_tile_rows<Config::kGeneral>(tile, warp_row + column_warp * kRows, kRows,
                                      EvenRows<T>{data, rows.row_stride}, first_kept, allocated,
                                      columns, rows.aligned, lane);
  }
};

}  // namespace flashmha::cuda
