// Backward attention with the instructions of sm_80 (docs/implementation.md, "The backward pass").
//
// One kernel text gives all gradients, because they differ in the roles of queries and keys only.
// Every block of threads keeps a pair of tiles, streams past it the pairs of the other side, and
// adds up products in registers, in a fixed order: the result has the same bits every time.
//
//   gradient   kept     streamed   S                     added up
//   q          Q, dO    K, V       Q K^T                 dQ += dS K
//   k, v       K, V     Q, dO      K Q^T (transposed)    dK += dS^T Q,  dV += P^T dO
//   all        K, V     Q, dO      K Q^T (transposed)    the same, and dQ += dS K in memory
//   bias       Q, dO    K, V       Q K^T                 dS of one tile, over batch rows and heads
//
// with P = exp(S - lse) and dS = P (dO V^T - delta), transposed like S. Keys meet the queries of
// all heads of their group.
//
// `all` computes S and dO V^T once (5 products); dQ is added up by atomics, in float32, in an order
// that changes. The others need 7 products, 8 where dK and dV together do not fit into registers
// (head_dim above 128), and are what runs when the same bits are asked for, with options, and where
// shared memory is scarce (docs/decisions/0007-two-backwards-on-a-gpu.md).
//
// A warp has 16 rows of the kept tiles; in `all` two warps share 32 of them (16 for D = 256), each
// with half of the queries and half of the columns. What streams past a warp bounds the speed: for
// D = 128, 76 KiB a tile of 64 queries instead of the 90 KiB of 16 rows alone, with P and dS going
// through shared memory. That is 162, 161 and 208 KiB of it for D = 64, 128, 256 in `all` (8
// warps); q, k and v take 96 KiB for D = 128 and 256.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/sm80/backward_block.cuh"

namespace flashmha::cuda {

// Sums of dQ in float32, for every kQueries rows of a sequence and head one tile of them, in the
// order of the accumulators, so that a warp adds to 32 neighbours at a time. Sequence b begins at
// tile first_row / kQueries + b: the tiles of sequences before it end there.
template <class Config>
struct QuerySums {
  static constexpr int kRowWarps = Config::kQueries / 32;
  static constexpr int kColumns = Config::kHeadDim / (Config::kNumWarps / kRowWarps);  // of a warp
  static constexpr int kTiles = kColumns / 8;
  static constexpr int kTileFloats = Config::kQueries * Config::kHeadDim;
  static_assert(kColumns % 16 == 0);
  using Sums = Accumulator[2][kTiles];

  static __device__ __forceinline__ float* tile_of(const BackwardParams& params,
                                                   const Sequence& sequence, int head, int row) {
    const std::int64_t first = params.forward.lengths.cu_seqlens_q.data
                                   ? sequence.first_row_q
                                   : sequence.batch * params.forward.lengths.seqlen_q;
    const std::int64_t tile = first / Config::kQueries + sequence.batch + row / Config::kQueries;
    return params.dq_sums + (tile * params.forward.num_heads_q + head) * kTileFloats;
  }
  static std::int64_t count(const ForwardParams& forward) {
    return (forward.lengths.total_q / Config::kQueries + forward.batch) * forward.num_heads_q *
           kTileFloats;
  }
  // f(sum, float of the tile) for all sums of this thread.
  template <class F>
  static __device__ __forceinline__ void for_each(int thread, Sums& sums, F f) {
    const int first = thread / 32 * 2 * kTiles * 4 * 32 + thread % 32;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          f(sums[m][n][e], first + ((m * kTiles + n) * 4 + e) * 32);
      }
    }
  }
  static __device__ __forceinline__ int first_row(int thread) {
    return thread / 32 % kRowWarps * 32;
  }
  static __device__ __forceinline__ int first_column(int thread) {
    return thread / 32 / kRowWarps * kColumns;
  }
};

// dq, dk and dv of the kept tiles.
template <class Config>
struct GradientBlock : BackwardBlock<Config> {
  using Base = BackwardBlock<Config>;
  using Base::Base;
  using typename Base::Scores;
  using typename Base::Sums;
  using typename Base::T;

  using Exchange = SharedTile<Config::kStreamed>;  // [keys][queries]
  __device__ __forceinline__ Exchange ds_tile() const {
    return Exchange(this->kept_first.address + Config::kDsOffset);
  }
  __device__ __forceinline__ Exchange p_tile() const {
    return Exchange(ds_tile().address + Config::kExchangedBytes);
  }
  __device__ __forceinline__ void give(const Scores& scores, const Exchange& tile) const {
#pragma unroll
    for (int m = 0; m < Base::kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int n = 0; n < Base::kColumnTiles; ++n) {
          tile.store_pair(this->warp_row + Scores::row_of(m, 2 * half, this->lane),
                          this->column_warp * Base::kScored + Scores::column_of(n, 0, this->lane),
                          pack<T>(scores.value[m][n][2 * half], scores.value[m][n][2 * half + 1]));
        }
      }
    }
  }
  // sums += weights streamed, of this warp's keys and columns.
  __device__ __forceinline__ void take_product(const Exchange& weights,
                                               const typename Base::Tile& streamed,
                                               Sums& sums) const {
#pragma unroll
    for (int row = 0; row < Config::kStreamed; row += 16) {
      FragmentA a[Base::kRowTiles];
#pragma unroll
      for (int m = 0; m < Base::kRowTiles; ++m)
        weights.load_a(this->warp_row + 16 * m, row, this->lane, a[m]);
      this->add_rows(a, streamed, row, sums);
    }
  }

  // dQ += dS K of all keys of the block, by queries and columns.
  __device__ __forceinline__ void add_to_queries(int head, int row) const {
    using Queries = QuerySums<Config>;
    typename Queries::Sums sums = {};
    const int query = Queries::first_row(this->thread);
    const int column = Queries::first_column(this->thread);
#pragma unroll
    for (int key = 0; key < Config::kKeys; key += 16) {
      FragmentA a[2];
      ds_tile().load_a_transposed(query, key, this->lane, a[0]);
      ds_tile().load_a_transposed(query + 16, key, this->lane, a[1]);
#pragma unroll
      for (int n = 0; n < Queries::kTiles; n += 2) {
        std::uint32_t b[4];
        this->kept_first.load_b_transposed(key, column + 8 * n, this->lane, b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma<T>(sums[m][n], a[m], b[0], b[1]);
          mma<T>(sums[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
    float* memory = Queries::tile_of(this->params, this->sequence, head, row);
    Queries::for_each(this->thread, sums, [&](float sum, int at) { atomicAdd(memory + at, sum); });
  }

  // Adds what the pairs of the kept tiles with the streamed ones contribute. `all`: warps made P
  // and dS of some keys and queries, and need them of all queries for dK and dV, of all keys for
  // dQ.
  __device__ __forceinline__ void visit(int stage, int head, int first_query, int first_key,
                                        Sums& first_sums, Sums& second_sums) const {
    Scores p;
    Scores ds;
    Scores slope;
    this->make_pairs(stage, head, first_query, first_key, p, ds, slope);
    this->undo_softcap(ds, slope);
    if constexpr (Config::kOfAll) {
      give(p, p_tile());
      give(ds, ds_tile());
      __syncthreads();
      take_product(p_tile(), this->streamed_second(stage), second_sums);
      take_product(ds_tile(), this->streamed_first(stage), first_sums);
      add_to_queries(head, first_query);
      return;
    }
    if constexpr (Config::kOfValues)
      this->add_product(p, this->streamed_second(stage), second_sums);
    if constexpr (Config::kNeedsDs) this->add_product(ds, this->streamed_first(stage), first_sums);
  }

  // load(i, stage) and visit(i, stage) for i in [0, count); the next pair arrives during a visit.
  template <class Load, class Visit>
  static __device__ __forceinline__ void stream(int count, Load load, Visit visit) {
    if (Config::kStages > 1 && count > 0) load(0, 0);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      if constexpr (Config::kStages == 1) {
        __syncthreads();  // nobody reads the last pair any more
        load(i, 0);
      }
      wait_for_copies();
      __syncthreads();
      if (Config::kStages > 1 && i + 1 < count) load(i + 1, (i + 1) % 2);
      visit(i, Config::kStages > 1 ? i % 2 : 0);
    }
    wait_for_copies();
    __syncthreads();
  }

  __device__ __forceinline__ void run_queries(int head, Sums& sums) const {
    this->load_queries(this->kept_first, this->kept_second, this->row_values(0), head,
                       this->first_kept);
    const int last_row = min(this->first_kept + Config::kQueries, this->seqlen_q) - 1;
    const KeyRange keys = this->band.keys_of_any(this->first_kept, last_row);
    const int begin = static_cast<int>(keys.begin) / Config::kKeys;
    const int end = last_row < this->first_kept
                        ? begin
                        : (static_cast<int>(keys.end) + Config::kKeys - 1) / Config::kKeys;
    stream(
        end - begin,
        [&](int i, int stage) {
          this->load_keys(this->streamed_first(stage), this->streamed_second(stage),
                          (begin + i) * Config::kKeys);
        },
        [&](int i, int stage) {
          visit(stage, head, this->first_kept, (begin + i) * Config::kKeys, sums, sums);
        });
  }

  __device__ __forceinline__ void run_keys(Sums& first_sums, Sums& second_sums) const {
    this->load_keys(this->kept_first, this->kept_second, this->first_kept);
    const int last_key = min(this->first_kept + Config::kKeys, this->seqlen_k) - 1;
    const KeyRange rows = this->band.rows_of_any(this->first_kept, last_key, this->seqlen_q);
    const int begin = static_cast<int>(rows.begin) / Config::kQueries;
    const int end = (static_cast<int>(rows.end) + Config::kQueries - 1) / Config::kQueries;
    const int num_tiles = last_key < this->first_kept ? 0 : max(end - begin, 0);
    const int first_head = this->head_kv * this->forward.group_size;
    const auto head_of = [&](int i) { return first_head + i / num_tiles; };
    const auto row_of = [&](int i) { return (begin + i % num_tiles) * Config::kQueries; };
    stream(
        num_tiles * this->forward.group_size,
        [&](int i, int stage) {
          this->load_queries(this->streamed_first(stage), this->streamed_second(stage),
                             this->row_values(stage), head_of(i), row_of(i));
        },
        [&](int i, int stage) {
          visit(stage, head_of(i), row_of(i), this->first_kept, first_sums, second_sums);
        });
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::kNumThreads, Config::kOfAll ? 1 : 2)
    backward_kernel(const __grid_constant__ BackwardParams params, std::uint32_t num_row_blocks) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  using Block = GradientBlock<Config>;
  const ForwardParams& forward = params.forward;
  const auto group = static_cast<std::uint32_t>(forward.group_size);
  const std::uint32_t num_heads =
      static_cast<std::uint32_t>(forward.num_heads_q) / (Config::kOfQueries ? 1 : group);
  const std::uint32_t pair = blockIdx.x / num_row_blocks;
  const auto head = static_cast<int>(pair % num_heads);
  const int head_kv = Config::kOfQueries ? head / forward.group_size : head;
  // Causal masks give the last queries and the first keys most to do: these start first.
  const std::uint32_t row_block = blockIdx.x % num_row_blocks;
  const int first_row =
      static_cast<int>(Config::kOfQueries ? num_row_blocks - 1 - row_block : row_block) *
      Config::kKept;
  const Sequence sequence = find_sequence(forward.lengths, pair / num_heads, false);
  if (first_row >= (Config::kOfQueries ? sequence.allocated_q : sequence.allocated_k)) return;
  const Block block(params, sequence, head_kv, first_row, shared);
  typename Block::Sums first_sums = {};
  const float scale = forward.scores.softmax_scale;
  if constexpr (Config::kOfQueries) {
    block.run_queries(head, first_sums);
    block.store(first_sums, scale, block.kept_first, params.dq, block.query_rows(params.dq, head),
                forward.head_dim);
  } else {
    typename Block::Sums second_sums = {};
    block.run_keys(first_sums, second_sums);
    if constexpr (Config::kOfKeys) {
      block.store(first_sums, scale, block.kept_first, params.dk, block.key_rows(params.dk),
                  forward.head_dim);
    }
    if constexpr (Config::kOfValues) {
      block.store(second_sums, 1.0f, block.kept_second, params.dv, block.key_rows(params.dv),
                  forward.head_dim_v);
    }
  }
}

// dq of one tile of queries from its sums.
template <class Config>
__global__ void __launch_bounds__(Config::kNumThreads)
    dq_kernel(const __grid_constant__ BackwardParams params, std::uint32_t num_row_blocks) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  using T = typename Config::Element;
  using Queries = QuerySums<Config>;
  const ForwardParams& forward = params.forward;
  const std::uint32_t pair = blockIdx.x / num_row_blocks;
  const auto num_heads = static_cast<std::uint32_t>(forward.num_heads_q);
  const auto head = static_cast<int>(pair % num_heads);
  const Sequence sequence = find_sequence(forward.lengths, pair / num_heads, false);
  const int first_row = static_cast<int>(blockIdx.x % num_row_blocks) * Config::kQueries;
  if (first_row >= sequence.allocated_q) return;
  const float* memory = Queries::tile_of(params, sequence, head, first_row);
  const SharedTile<Config::kHeadDim> tile(shared);
  const auto thread = static_cast<int>(threadIdx.x);
  typename Queries::Sums sums;
  Queries::for_each(thread, sums, [&](float& sum, int at) { sum = memory[at]; });
  using Place = ScoreTile<2, Queries::kTiles>;
  const float scale = forward.scores.softmax_scale;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = Queries::first_row(thread) + Place::row_of(m, 2 * half, thread % 32);
      const float factor = first_row + row < sequence.seqlen_q ? scale : 0.0f;
#pragma unroll
      for (int n = 0; n < Queries::kTiles; ++n) {
        tile.store_pair(row, Queries::first_column(thread) + Place::column_of(n, 0, thread % 32),
                        pack<T>(sums[m][n][2 * half] * factor, sums[m][n][2 * half + 1] * factor));
      }
    }
  }
  __syncthreads();
  T* data = static_cast<T*>(params.dq.data) + sequence.batch * params.dq.outer_stride +
            sequence.first_row_q * params.dq.row_stride + head * params.dq.head_stride;
  constexpr int kRows = Config::kQueries / Config::kNumWarps;
  store_tile_rows<false>(tile, thread / 32 * kRows, kRows, EvenRows<T>{data, params.dq.row_stride},
                         first_row, sequence.allocated_q, forward.head_dim, true, thread % 32);
}

constexpr const char* name_of(Gradient gradient) {
  switch (gradient) {
    case Gradient::q: return "sm80_backward of dq";
    case Gradient::k: return "sm80_backward of dk";
    case Gradient::v: return "sm80_backward of dv";
    case Gradient::k_and_v: return "sm80_backward of dk and dv";
    default: return "sm80_backward of dq, dk and dv";
  }
}

template <class T, int head_dim, bool general, Gradient gradient>
Launch launch_backward(const BackwardParams& params, std::int64_t seqlen, cudaStream_t stream) {
  using Config = BackwardConfig<T, head_dim, general, gradient>;
  const ForwardParams& forward = params.forward;
  const auto blocks_of = [](std::int64_t rows, int block) {
    return static_cast<std::uint32_t>((rows + block - 1) / block);
  };
  if constexpr (Config::kOfAll) {
    const auto bytes = static_cast<std::size_t>(QuerySums<Config>::count(forward)) * sizeof(float);
    const cudaError_t error = cudaMemsetAsync(params.dq_sums, 0, bytes, stream);
    if (error != cudaSuccess) return {error, "sm80_backward's zeros"};
  }
  const std::uint32_t num_row_blocks = blocks_of(seqlen, Config::kKept);
  const std::int64_t num_heads =
      forward.num_heads_q / (Config::kOfQueries ? 1 : forward.group_size);
  const Launch launch =
      start(name_of(gradient), backward_kernel<Config>, num_row_blocks * num_heads * forward.batch,
            Config::kNumThreads, Config::kSharedBytes, stream, params, num_row_blocks);
  if constexpr (Config::kOfAll) {
    if (launch.error != cudaSuccess) return launch;
    const std::uint32_t num_tiles = blocks_of(forward.lengths.seqlen_q, Config::kQueries);
    return start("sm80_backward's rounding of dq", dq_kernel<Config>,
                 std::int64_t{num_tiles} * forward.num_heads_q * forward.batch, Config::kNumThreads,
                 Config::kQueries * Config::kHeadDim * 2, stream, params, num_tiles);
  }
  return launch;
}

}  // namespace flashmha::cuda
