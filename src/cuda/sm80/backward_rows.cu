// The parts of the backward that look at rows, not at pairs: delta before, dsinks after.
#include "cuda/algo/move_tile.cuh"
#include "cuda/algo/sequence.cuh"
#include "cuda/algo/softmax.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm80/backward_params.h"

namespace flashmha::cuda {
namespace {

constexpr int kThreads = 128;

__device__ std::int64_t value_offset(const RowValues& values, const Sequence& sequence,
                                     std::int64_t head) {
  return sequence.batch * values.batch_stride + head * values.head_stride + sequence.first_row_q;
}

template <class T>
__device__ const T* query_row(const Rows& rows, const Sequence& sequence, std::int64_t head,
                              std::int64_t row) {
  return static_cast<const T*>(rows.data) + sequence.batch * rows.outer_stride +
         (sequence.first_row_q + row) * rows.row_stride + head * rows.head_stride;
}

// Chunk `index` of 8 elements of a row.
template <class T>
__device__ uint4 chunk_of(const T* row, int index, int columns, bool aligned) {
  if (aligned) return *reinterpret_cast<const uint4*>(row + 8 * index);
  return load_elements(row + 8 * index, columns - 8 * index);
}

template <class T>
__device__ float dot(const uint4& a, const uint4& b, float sum) {
  const std::uint32_t left[4] = {a.x, a.y, a.z, a.w};
  const std::uint32_t right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int shift = 0; shift < 32; shift += 16) {
      T x;
      T y;
      x.bits = static_cast<std::uint16_t>(left[i] >> shift);
      y.bits = static_cast<std::uint16_t>(right[i] >> shift);
      sum = fmaf(widen(x), widen(y), sum);
    }
  }
  return sum;
}

// kLanes threads a row of a head: delta = dout . out - dlse, and lse as the kernels want it.
constexpr int kLanes = 8;

template <class T>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(const __grid_constant__ BackwardParams params, std::int64_t seqlen_q) {
  const ForwardParams& forward = params.forward;
  const std::int64_t index = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const std::int64_t head = index % forward.num_heads_q;
  const std::int64_t row = index / forward.num_heads_q % seqlen_q;
  const std::int64_t batch = index / forward.num_heads_q / seqlen_q;
  const auto lane = static_cast<int>(threadIdx.x % kLanes);
  const bool exists = batch < forward.batch;
  const Sequence sequence = find_sequence(forward.lengths, exists ? batch : 0, false);
  const bool real = exists && row < sequence.seqlen_q;
  const int columns = forward.head_dim_v;
  float sum = 0.0f;
  if (real) {
    const T* out = query_row<T>(forward.out, sequence, head, row);
    const T* dout = query_row<T>(params.dout, sequence, head, row);
    for (int i = lane; 8 * i < columns; i += kLanes) {
      sum = dot<T>(chunk_of(out, i, columns, forward.out.aligned),
                   chunk_of(dout, i, columns, params.dout.aligned), sum);
    }
  }
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
  if (!real || lane != 0) return;
  const float lse = forward.lse[batch * forward.lse_batch_stride + head * forward.lse_head_stride +
                                sequence.first_row_q + row];
  params.lse_log2.data[value_offset(params.lse_log2, sequence, head) + row] =
      lse == -INFINITY ? INFINITY : lse * kLog2E;
  if (params.dlse.data) sum -= params.dlse.data[value_offset(params.dlse, sequence, head) + row];
  params.delta.data[value_offset(params.delta, sequence, head) + row] = sum;
}

// One block a head: dsink = -sum over its rows of exp(sink - lse) delta, in a fixed order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dsinks_kernel(const __grid_constant__ BackwardParams params) {
  __shared__ double sums[kThreads];
  const ForwardParams& forward = params.forward;
  const auto head = static_cast<std::int64_t>(blockIdx.x);
  const float sink = element_of<T>(forward.scores.sinks, 0, head);
  const RowValues lse_rows{forward.lse, forward.lse_batch_stride, forward.lse_head_stride};
  double sum = 0.0;
  for (std::int64_t batch = 0; batch < forward.batch; ++batch) {
    const Sequence sequence = find_sequence(forward.lengths, batch, false);
    const float* lse = forward.lse + value_offset(lse_rows, sequence, head);
    const float* delta = params.delta.data + value_offset(params.delta, sequence, head);
    for (std::int64_t row = threadIdx.x; row < sequence.seqlen_q; row += kThreads) {
      const float probability = lse[row] == -INFINITY ? 0.0f : expf(sink - lse[row]);
      sum -= static_cast<double>(probability) * static_cast<double>(delta[row]);
    }
  }
  sums[threadIdx.x] = sum;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) params.dsinks[head] = static_cast<float>(sums[0]);
}

}  // namespace

Launch launch_delta(DType dtype, const BackwardParams& params, std::int64_t seqlen_q,
                    cudaStream_t stream) {
  const std::int64_t num_rows = params.forward.batch * seqlen_q * params.forward.num_heads_q;
  const std::int64_t num_blocks = (num_rows * kLanes + kThreads - 1) / kThreads;
  auto* kernel = dtype == DType::bfloat16 ? delta_kernel<BFloat16> : delta_kernel<Float16>;
  return start("sm80_backward's delta", kernel, num_blocks, kThreads, 0, stream, params, seqlen_q);
}

Launch launch_dsinks(DType dtype, const BackwardParams& params, cudaStream_t stream) {
  auto* kernel = dtype == DType::bfloat16 ? dsinks_kernel<BFloat16> : dsinks_kernel<Float16>;
  return start("sm80_backward of dsinks", kernel, params.forward.num_heads_q, kThreads, 0, stream,
               params);
}

}  // namespace flashmha::cuda
