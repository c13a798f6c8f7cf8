// Forward attention with the instructions of sm_80: mma.sync, ldmatrix, cp.async. It runs on that
// and everything newer, through PTX.
//
// One block of threads takes kBlockM queries of one head and walks over the keys that they see,
// from the last to the first, kBlockN at a time. Warps divide the queries, 16 or 32 each, so that
// the softmax of a row stays inside a quad of threads. One buffer each for K and V:
//
//   copies    | K(n) . V(n) . . . | K(n-1) . . . . . . | V(n-1)
//   products  |      S = Q K(n)^T | softmax, O += P V(n) | S = Q K(n-1)^T
//             ^ barrier           ^ barrier            ^ barrier
//
// What it costs for D = head_dim rounded up: 4 D FLOPs a pair of query and key; (kBlockM + 2
// kBlockN) D * 2 bytes of shared memory (64 KiB for 128 x 64 at D = 128), two blocks a
// multiprocessor; O takes kRowTiles * D / 2 registers, S kRowTiles * kBlockN / 2.
//
// kGeneral = false is the kernel for models: masks are bands, every row is aligned to 16 bytes, the
// scale is positive. true serves every option, unaligned rows and pages.
#pragma once

#include "cuda/algo/move_tile.cuh"
#include "cuda/algo/sequence.cuh"
#include "cuda/algo/softmax.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm80/launch_forward.h"

namespace flashmha::cuda {

template <class T, int head_dim, bool general>
struct ForwardConfig {
  using Element = T;
  static constexpr int kHeadDim = head_dim;
  static constexpr bool kGeneral = general;
  static constexpr int kNumWarps = 4;
  static constexpr int kNumThreads = 32 * kNumWarps;
  static constexpr int kBlockM = !general && head_dim <= 128 ? 128 : 64;
  static constexpr int kBlockN = !general && head_dim == 64 ? 128 : 64;
  static constexpr int kRowTiles = kBlockM / (16 * kNumWarps);
  static constexpr int kSharedBytes = (kBlockM + 2 * kBlockN) * head_dim * 2;
};

// One block's work. Pointers and positions are of its sequence and head; rows are counted in 32
// bits inside a sequence (forward.cpp refuses longer ones).
template <class Config>
struct ForwardBlock {
  using T = typename Config::Element;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kRowTiles = Config::kRowTiles;
  static constexpr int kColumnTiles = Config::kBlockN / 8;
  static constexpr int kOutTiles = kHeadDim / 8;
  using Tile = SharedTile<kHeadDim>;
  using Scores = ScoreTile<kRowTiles, kColumnTiles>;

  const ForwardParams& params;
  const Splits& splits;
  const int split;
  const Sequence sequence;
  const int head;
  const int first_row;
  const int seqlen_q;
  const SequenceBand band;
  const Tile q_tile, k_tile, v_tile;
  const int thread, lane, warp_row;

  __device__ ForwardBlock(const ForwardParams& the_params, const Splits& the_splits, int the_split,
                          const Sequence& the_sequence, int the_head, int row, std::uint8_t* shared)
      : params(the_params),
        splits(the_splits),
        split(the_split),
        sequence(the_sequence),
        head(the_head),
        first_row(row),
        seqlen_q(static_cast<int>(sequence.seqlen_q)),
        band(params.band, sequence.seqlen_q, sequence.seqlen_k),
        q_tile(shared),
        k_tile(shared + Config::kBlockM * kHeadDim * 2),
        v_tile(shared + (Config::kBlockM + Config::kBlockN) * kHeadDim * 2),
        thread(static_cast<int>(threadIdx.x)),
        lane(thread % 32),
        warp_row(thread / 32 * 16 * kRowTiles) {}

  __device__ __forceinline__ T* query_row(const Rows& rows, int row) const {
    return static_cast<T*>(rows.data) + sequence.batch * rows.outer_stride +
           (sequence.first_row_q + row) * rows.row_stride + head * rows.head_stride;
  }

  __device__ __forceinline__ void load_queries() const {
    const EvenRows<T> rows{query_row(params.q, 0), params.q.row_stride};
    load_tile<Config::kBlockM, Config::kNumThreads, Config::kGeneral>(
        q_tile, rows, first_row, seqlen_q, params.head_dim, params.q.aligned, thread);
  }

  __device__ __forceinline__ void load_keys(const Tile& tile, const Rows& rows, int first,
                                            int columns) const {
    const int head_kv = head / params.group_size;
    const int limit = static_cast<int>(sequence.seqlen_k);
    if constexpr (Config::kGeneral) {
      const KeyRows<T> keys(rows, params.pages, sequence, head_kv);
      load_tile<Config::kBlockN, Config::kNumThreads, true>(tile, keys, first, limit, columns,
                                                            rows.aligned, thread);
    } else {
      T* data = static_cast<T*>(rows.data) + sequence.batch_index_k * rows.outer_stride +
                sequence.first_row_k * rows.row_stride + head_kv * rows.head_stride;
      load_tile<Config::kBlockN, Config::kNumThreads, false>(
          tile, EvenRows<T>{data, rows.row_stride}, first, limit, columns, true, thread);
    }
  }

  // S = Q K^T of this warp's rows.
  __device__ __forceinline__ void multiply_keys(Scores& scores) const {
    scores.clear();
#pragma unroll
    for (int d = 0; d < kHeadDim; d += 16) {
      FragmentA a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
        q_tile.load_a(warp_row + 16 * m, d, lane, a[m]);
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t b[4];
        k_tile.load_b(8 * n, d, lane, b);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma<T>(scores.value[m][n], a[m], b[0], b[1]);
          mma<T>(scores.value[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // O += P V of this warp's rows.
  __device__ __forceinline__ void multiply_values(const Scores& probabilities,
                                                  Accumulator (&out)[kRowTiles][kOutTiles]) const {
#pragma unroll
    for (int key = 0; key < Config::kBlockN; key += 16) {
      FragmentA a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        pack_fragment<T>(probabilities.value[m][key / 8], probabilities.value[m][key / 8 + 1],
                         a[m]);
      }
#pragma unroll
      for (int n = 0; n < kOutTiles; n += 2) {
        std::uint32_t b[4];
        v_tile.load_b_transposed(key, 8 * n, lane, b);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma<T>(out[m][n], a[m], b[0], b[1]);
          mma<T>(out[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Products become scores: options, then what the band hides. All rows see the keys [begin, end).
  __device__ __forceinline__ void mask_scores(Scores& scores, int first_key, int begin,
                                              int end) const {
    const int row = first_row + warp_row;
    if constexpr (Config::kGeneral) {
      scores.template apply_options<T>(params.scores, sequence.batch, head, band, row, first_key,
                                       seqlen_q, lane);
    }
    if (first_key < begin || first_key + Config::kBlockN > end) {
      scores.apply_band(band, row, first_key, seqlen_q, lane);
    }
  }

  __device__ __forceinline__ void attend(SoftmaxRows<kRowTiles>& softmax,
                                         Accumulator (&out)[kRowTiles][kOutTiles],
                                         float scale_log2) const {
    const int last_row = min(first_row + Config::kBlockM, seqlen_q) - 1;
    KeyRange keys = band.keys_of_any(first_row, last_row);
    if constexpr (Config::kGeneral) {
      if (splits.most > 1) {
        const std::int64_t length = keys_of_split(splits, sequence.seqlen_k);
        keys = {max(keys.begin, split * length), min(keys.end, (split + 1) * length)};
      }
    }
    if (last_row < first_row || keys.empty()) return;
    const int first = static_cast<int>(keys.begin) / Config::kBlockN * Config::kBlockN;
    int key = (static_cast<int>(keys.end) - 1) / Config::kBlockN * Config::kBlockN;
    const KeyRange everybody = band.keys_of_all(first_row, last_row);
    const int begin = static_cast<int>(everybody.begin);
    const int end = static_cast<int>(everybody.end);
    const DropoutRows dropout(params.scores.dropout, sequence.batch * params.num_heads_q + head);
    load_queries();
    load_keys(k_tile, params.k, key, params.head_dim);
#pragma unroll 1
    for (; key >= first; key -= Config::kBlockN) {
      wait_for_copies();
      __syncthreads();  // K is there, and nobody reads the last V any more
      load_keys(v_tile, params.v, key, params.head_dim_v);
      Scores scores;
      multiply_keys(scores);
      mask_scores(scores, key, begin, end);
      wait_for_copies();
      __syncthreads();  // V is there, and nobody reads this K any more
      if (key > first) {
        load_keys(k_tile, params.k, key - Config::kBlockN, params.head_dim);
      }
      softmax.add(scores, scale_log2, out);
      if constexpr (Config::kGeneral) {
        if (params.scores.dropout.p > 0.0f) {
          scores.apply_dropout(dropout, first_row + warp_row, key, lane);
        }
      }
      multiply_values(scores, out);
    }
  }

  // Writes what one of several parts of the keys gives, in float32.
  __device__ __forceinline__ void finish_part(const SoftmaxRows<kRowTiles>& softmax,
                                              const Accumulator (&out)[kRowTiles][kOutTiles],
                                              float scale_log2) const {
    const std::int64_t corner =
        ((split * std::int64_t{params.batch} + sequence.batch) * params.num_heads_q + head) *
        seqlen_q;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + warp_row + Scores::row_of(m, 2 * half, lane);
        const auto end = softmax.finish(m, half, scale_log2, -INFINITY);
        if (row >= seqlen_q) continue;
        if (lane % 4 == 0) splits.lse[corner + row] = end.lse;
        float* to = splits.out + (corner + row) * params.head_dim_v;
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int column = Scores::column_of(n, i, lane);
            if (column < params.head_dim_v) to[column] = out[m][n][2 * half + i] * end.factor;
          }
        }
      }
    }
  }

  // Divides by the sums, writes lse if there is one, and leaves the rows of the warp in its part of
  // the tile of Q, which nobody else reads.
  __device__ __forceinline__ void finish(const SoftmaxRows<kRowTiles>& softmax,
                                         const Accumulator (&out)[kRowTiles][kOutTiles],
                                         float scale_log2) const {
    const ScoreParams& scores = params.scores;
    const float sink = scores.sinks.data ? element_of<T>(scores.sinks, 0, head) : -INFINITY;
    const float keep_scale = 1.0f / (1.0f - scores.dropout.p);
    float* lse = params.lse + sequence.batch * params.lse_batch_stride +
                 head * params.lse_head_stride + sequence.first_row_q;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int tile_row = warp_row + Scores::row_of(m, 2 * half, lane);
        const int row = first_row + tile_row;
        const auto end = softmax.finish(m, half, scale_log2, sink);
        const bool real = row < seqlen_q;
        if (params.lse != nullptr && lane % 4 == 0 && row < sequence.allocated_q)
          lse[row] = real ? end.lse : -INFINITY;
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
          const float factor = end.factor * keep_scale;
          const float low = real ? out[m][n][2 * half] * factor : 0.0f;
          const float high = real ? out[m][n][2 * half + 1] * factor : 0.0f;
          q_tile.store_pair(tile_row, Scores::column_of(n, 0, lane), pack<T>(low, high));
        }
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void store() const {
    store_tile_rows<Config::kGeneral>(q_tile, warp_row, 16 * kRowTiles,
                                      EvenRows<T>{query_row(params.out, 0), params.out.row_stride},
                                      first_row, sequence.allocated_q, params.head_dim_v,
                                      params.out.aligned, lane);
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::kNumThreads, 2)
    forward_kernel(const __grid_constant__ ForwardParams params,
                   const __grid_constant__ Splits splits, std::uint32_t num_row_blocks) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  using Block = ForwardBlock<Config>;
  // The last rows of a causal mask see most keys: they start first.
  const std::uint32_t row_block = num_row_blocks - 1 - blockIdx.x % num_row_blocks;
  const auto num_heads = static_cast<std::uint32_t>(params.num_heads_q);
  const std::uint32_t num_pairs = num_heads * static_cast<std::uint32_t>(params.batch);
  const std::uint32_t pair = blockIdx.x / num_row_blocks % num_pairs;
  const auto split =
      Config::kGeneral ? static_cast<int>(blockIdx.x / num_row_blocks / num_pairs) : 0;
  const Sequence sequence =
      find_sequence(params.lengths, pair / num_heads, params.pages.page_size > 0);
  const int first_row = static_cast<int>(row_block) * Config::kBlockM;
  if (first_row >= sequence.allocated_q) return;
  const int num_splits = Config::kGeneral ? num_splits_of(splits, sequence.seqlen_k) : 1;
  if (split >= num_splits) return;
  const Block block(params, splits, split, sequence, static_cast<int>(pair % num_heads), first_row,
                    shared);
  const float scale_log2 = Config::kGeneral ? kLog2E : params.scores.softmax_scale * kLog2E;
  SoftmaxRows<Block::kRowTiles> softmax;
  softmax.reset();
  Accumulator out[Block::kRowTiles][Block::kOutTiles] = {};
  block.attend(softmax, out, scale_log2);
  if (num_splits > 1) {
    block.finish_part(softmax, out, scale_log2);
    return;
  }
  block.finish(softmax, out, scale_log2);
  block.store();
}

template <class T, int head_dim, bool general>
Launch launch_forward(const ForwardParams& params, const Splits& splits, std::int64_t seqlen_q,
                      cudaStream_t stream) {
  using Config = ForwardConfig<T, head_dim, general>;
  const auto num_row_blocks =
      static_cast<std::uint32_t>((seqlen_q + Config::kBlockM - 1) / Config::kBlockM);
  return start("sm80_forward", forward_kernel<Config>,
               std::int64_t{num_row_blocks} * params.batch * params.num_heads_q * splits.most,
               Config::kNumThreads, Config::kSharedBytes, stream, params, splits, num_row_blocks);
}

}  // namespace flashmha::cuda
