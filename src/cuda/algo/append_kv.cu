// One warp moves one row of one head; a row is read and written once.
#include "cuda/algo/append_kv.h"
#include "cuda/algo/sequence.cuh"
#include "cuda/launch.cuh"
#include "cuda/tile/mma.cuh"

namespace flashmha::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__device__ T narrow(float value) {
  T result;
  result.bits = static_cast<std::uint16_t>(pack<T>(value, 0.0f));
  return result;
}

template <class T>
__device__ float table_value(const void* table, bool is_float32, std::int64_t at) {
  return is_float32 ? static_cast<const float*>(table)[at]
                    : widen(static_cast<const T*>(table)[at]);
}

__device__ std::int64_t position_of(const MoveParams& params, std::int64_t batch,
                                    std::int64_t row) {
  const RotaryParams& rotary = params.rotary;
  std::int64_t position = 0;
  if (rotary.positions) {
    position =
        rotary.positions[batch * rotary.positions_batch_stride + row * rotary.positions_row_stride];
  } else {
    const Indices& filled = params.lengths.cache_seqlens;
    position = (filled.data ? index_at(filled, batch) : 0) + (rotary.advances ? row : 0);
  }
  return bounded(position, 0, rotary.num_positions - 1);
}

template <class T>
__device__ T* destination_row(const MoveParams& params, std::int64_t batch, std::int64_t row,
                              std::int64_t head) {
  const Rows& rows = params.destination;
  if (!params.to_cache) {
    return static_cast<T*>(rows.data) + batch * rows.outer_stride + row * rows.row_stride +
           head * rows.head_stride;
  }
  const Sequence sequence = find_cached(params.lengths, batch);
  const KeyRows<T> keys(rows, params.pages, sequence, head);
  const std::int64_t key = sequence.seqlen_k - params.num_rows + row;
  // Keys that do not fit into a wrongly described cache are dropped.
  if (sequence.first_row_k + key < 0) return nullptr;
  return const_cast<T*>(keys.row(static_cast<int>(key)));
}

template <class T>
__global__ void __launch_bounds__(kThreads) move_kernel(const __grid_constant__ MoveParams params) {
  const std::int64_t index = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  const std::int64_t head = index % params.num_heads;
  const std::int64_t row = index / params.num_heads % params.num_rows;
  const std::int64_t batch = index / params.num_heads / params.num_rows;
  if (batch >= params.batch) return;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const T* from = static_cast<const T*>(params.source.data) + batch * params.source.outer_stride +
                  row * params.source.row_stride + head * params.source.head_stride;
  T* to = destination_row<T>(params, batch, row, head);
  if (to == nullptr) return;
  const RotaryParams& rotary = params.rotary;
  if (rotary.num_pairs > 0) {
    const std::int64_t position = position_of(params, batch, row);
    const int step = rotary.interleaved ? 2 : 1;
    const int distance = rotary.interleaved ? 1 : rotary.num_pairs;
    for (int n = lane; n < rotary.num_pairs; n += 32) {
      const float cosine =
          table_value<T>(rotary.cos, rotary.cos_is_float32, position * rotary.cos_stride + n);
      const float sine =
          table_value<T>(rotary.sin, rotary.sin_is_float32, position * rotary.sin_stride + n);
      const float first = widen(from[n * step]);
      const float second = widen(from[n * step + distance]);
      to[n * step] = narrow<T>(first * cosine - second * sine);
      to[n * step + distance] = narrow<T>(second * cosine + first * sine);
    }
  }
  for (int d = 2 * rotary.num_pairs + lane; d < params.dim; d += 32)
    to[d] = from[d];
}

}  // namespace

Launch move_rows(DType dtype, const MoveParams& params, cudaStream_t stream) {
  const std::int64_t num_warps = params.batch * params.num_rows * params.num_heads;
  const std::int64_t num_blocks = (num_warps * 32 + kThreads - 1) / kThreads;
  auto* kernel = dtype == DType::bfloat16 ? move_kernel<BFloat16> : move_kernel<Float16>;
  return start("append and rotation", kernel, num_blocks, kThreads, 0, stream, params);
}

}  // namespace flashmha::cuda
