// Adds up the results of parts of the keys, in order: with weights w = exp(lse_part - lse), out is
// the sum of w out_part, and lse the logarithm of the sum of exp(lse_part) and of the sink.
#include "cuda/algo/scores.cuh"
#include "cuda/algo/sequence.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm80/launch_forward.h"

namespace flashmha::cuda {
namespace {

constexpr int kThreads = 128;

// One warp a row of a head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const __grid_constant__ ForwardParams params,
                   const __grid_constant__ Splits splits) {
  const std::int64_t index = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  const std::int64_t seqlen_q = params.lengths.seqlen_q;
  const std::int64_t row = index % seqlen_q;
  const std::int64_t head = index / seqlen_q % params.num_heads_q;
  const std::int64_t batch = index / seqlen_q / params.num_heads_q;
  if (batch >= params.batch) return;
  const Sequence sequence = find_cached(params.lengths, batch);
  const int num_splits = num_splits_of(splits, sequence.seqlen_k);
  if (num_splits <= 1) return;  // written already
  const std::int64_t stride = std::int64_t{params.batch} * params.num_heads_q * seqlen_q;
  const float* lse = splits.lse + index;
  const float sink =
      params.scores.sinks.data ? element_of<T>(params.scores.sinks, 0, head) : -INFINITY;
  float top = sink;
  for (int split = 0; split < num_splits; ++split)
    top = fmaxf(top, lse[split * stride]);
  float sum = top == -INFINITY ? 0.0f : expf(sink - top);
  for (int split = 0; split < num_splits; ++split) {
    if (lse[split * stride] != -INFINITY) sum += expf(lse[split * stride] - top);
  }
  const auto lane = static_cast<int>(threadIdx.x % 32);
  T* out = static_cast<T*>(params.out.data) + batch * params.out.outer_stride +
           row * params.out.row_stride + head * params.out.head_stride;
  for (int column = lane; column < params.head_dim_v; column += 32) {
    float value = 0.0f;
    for (int split = 0; split < num_splits; ++split) {
      const float part = lse[split * stride];
      if (part == -INFINITY) continue;
      const float* from = splits.out + (split * stride + index) * params.head_dim_v;
      value = fmaf(expf(part - top), from[column], value);
    }
    out[column].bits = static_cast<std::uint16_t>(pack<T>(sum > 0.0f ? value / sum : 0.0f, 0.0f));
  }
  if (lane == 0 && params.lse != nullptr) {
    params.lse[batch * params.lse_batch_stride + head * params.lse_head_stride + row] =
        sum > 0.0f ? top + logf(sum) : sink;
  }
}

}  // namespace

Launch launch_combine(DType dtype, const ForwardParams& params, const Splits& splits,
                      cudaStream_t stream) {
  const std::int64_t num_rows =
      std::int64_t{params.batch} * params.num_heads_q * params.lengths.seqlen_q;
  const std::int64_t num_blocks = (num_rows * 32 + kThreads - 1) / kThreads;
  auto* kernel = dtype == DType::bfloat16 ? combine_kernel<BFloat16> : combine_kernel<Float16>;
  return start("sm80_decode, sum of parts", kernel, num_blocks, kThreads, 0, stream, params,
               splits);
}

}  // namespace flashmha::cuda
