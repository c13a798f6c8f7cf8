// The gradient of a bias: the sum of dS over all pairs that read an element of it. A block of
// threads owns a tile of the gradient and visits every batch row, head and tile of pairs that reads
// it, one after the other: nothing is shared, the order is fixed. A bias that is broadcast widely
// has few tiles, and few blocks that work.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/sm80/backward_block.cuh"

namespace flashmha::cuda {

// Indices of a dimension that stand behind element `index` of a bias with `size` elements there.
struct Readers {
  std::int64_t begin;
  std::int64_t end;
  __device__ Readers(std::int64_t size, std::int64_t index, std::int64_t limit)
      : begin(size == 1 ? 0 : index), end(size == 1 ? limit : min(index + 1, limit)) {}
};

// Adds the dS of one tile of pairs.
template <class Config>
__device__ __forceinline__ void add_pairs(const BackwardParams& params, const Sequence& sequence,
                                          int head, int first_row, int first_key,
                                          std::uint8_t* shared,
                                          typename BackwardBlock<Config>::Scores& sums) {
  using Block = BackwardBlock<Config>;
  const Block block(params, sequence, head / params.forward.group_size, first_row, shared);
  __syncthreads();  // nobody reads the last tiles any more
  block.load_queries(block.kept_first, block.kept_second, block.row_values(0), head, first_row);
  block.load_keys(block.streamed_first(0), block.streamed_second(0), first_key);
  wait_for_copies();
  __syncthreads();
  typename Block::Scores p;
  typename Block::Scores ds;
  typename Block::Scores slope;
  block.make_pairs(0, head, first_row, first_key, p, ds, slope);
#pragma unroll
  for (int n = 0; n < Block::kColumnTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      sums.value[0][n][e] += ds.value[0][n][e];
  }
}

// Writes a tile of sums, added up along the dimensions that the bias is broadcast over.
template <class Config>
__device__ __forceinline__ void store_bias(const BiasGradient& dbias, std::int64_t batch,
                                           std::int64_t head, int first_row, int first_key,
                                           std::uint8_t* shared,
                                           typename BackwardBlock<Config>::Scores& sums) {
  auto* tile = reinterpret_cast<float*>(shared);
  const auto thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  sums.for_each(thread % 32, [&](float sum, int row, int column) {
    tile[(thread / 32 * 16 + row) * Config::kKeys + column] = sum;
  });
  __syncthreads();
  const int rows_each = dbias.num_rows == 1 ? Config::kQueries : 1;
  const int columns_each = dbias.num_columns == 1 ? Config::kKeys : 1;
  const int num_columns = Config::kKeys / columns_each;
  for (int i = thread; i < Config::kQueries / rows_each * num_columns; i += Config::kNumThreads) {
    const int row = i / num_columns;
    const int column = i % num_columns;
    if (first_row + row >= dbias.num_rows || first_key + column >= dbias.num_columns) continue;
    float sum = 0.0f;
    for (int r = row; r < row + rows_each; ++r) {
      for (int c = column; c < column + columns_each; ++c)
        sum += tile[r * Config::kKeys + c];
    }
    dbias.data[((batch * dbias.num_heads + head) * dbias.num_rows + first_row + row) *
                   dbias.num_columns +
               first_key + column] = sum;
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kNumThreads, 2)
    bias_kernel(const __grid_constant__ BackwardParams params, std::uint32_t num_row_tiles,
                std::uint32_t num_column_tiles) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  const BiasGradient& dbias = params.dbias;
  const std::uint32_t pair = blockIdx.x / num_column_tiles / num_row_tiles;
  const std::int64_t dbias_batch = pair / dbias.num_heads;
  const std::int64_t dbias_head = pair % dbias.num_heads;
  const int row_tile = static_cast<int>(blockIdx.x / num_column_tiles % num_row_tiles);
  const int column_tile = static_cast<int>(blockIdx.x % num_column_tiles);
  const Readers batches(dbias.num_batches, dbias_batch, params.forward.batch);
  const Readers heads(dbias.num_heads, dbias_head, params.forward.num_heads_q);
  typename BackwardBlock<Config>::Scores sums;
  sums.clear();
  for (std::int64_t batch = batches.begin; batch < batches.end; ++batch) {
    const Sequence sequence = find_sequence(params.forward.lengths, batch, false);
    const SequenceBand band(params.forward.band, sequence.seqlen_q, sequence.seqlen_k);
    const Readers rows(dbias.num_rows, row_tile,
                       (sequence.seqlen_q + Config::kQueries - 1) / Config::kQueries);
    const Readers columns(dbias.num_columns, column_tile,
                          (sequence.seqlen_k + Config::kKeys - 1) / Config::kKeys);
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      const int first_row = static_cast<int>(row) * Config::kQueries;
      const std::int64_t last_row =
          min(static_cast<std::int64_t>(first_row) + Config::kQueries, sequence.seqlen_q) - 1;
      const KeyRange keys = band.keys_of_any(first_row, last_row);
      for (std::int64_t column = columns.begin; column < columns.end; ++column) {
        const int first_key = static_cast<int>(column) * Config::kKeys;
        if (first_key >= keys.end || first_key + Config::kKeys <= keys.begin) continue;
        for (std::int64_t head = heads.begin; head < heads.end; ++head) {
          add_pairs<Config>(params, sequence, static_cast<int>(head), first_row, first_key, shared,
                            sums);
        }
      }
    }
  }
  store_bias<Config>(dbias, dbias_batch, dbias_head, row_tile * Config::kQueries,
                     column_tile * Config::kKeys, shared, sums);
}

template <class T, int head_dim>
Launch launch_backward_bias(const BackwardParams& params, cudaStream_t stream) {
  using Config = BackwardConfig<T, head_dim, true, Gradient::bias>;
  const BiasGradient& dbias = params.dbias;
  const std::int64_t row_tiles = (dbias.num_rows + Config::kQueries - 1) / Config::kQueries;
  const std::int64_t column_tiles = (dbias.num_columns + Config::kKeys - 1) / Config::kKeys;
  return start("sm80_backward of dbias", bias_kernel<Config>,
               dbias.num_batches * dbias.num_heads * row_tiles * column_tiles, Config::kNumThreads,
               Config::kSharedBytes, stream, params, static_cast<std::uint32_t>(row_tiles),
               static_cast<std::uint32_t>(column_tiles));
}

}  // namespace flashmha::cuda
