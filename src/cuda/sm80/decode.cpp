// Attention to a cache: new keys are appended (rotated), queries are rotated into the workspace,
// then the forward kernel reads the cache where it lies. Keys are not split over blocks yet.
#include "cuda/algo/append_kv.h"
#include "cuda/error.h"
#include "cuda/params.h"
#include "cuda/sm80/kernels.h"

namespace flashmha::cuda::sm80 {
namespace {

RotaryParams rotary_params(const Problem& problem, const AttentionCall& call, bool advances) {
  const Rotary& rotary = call.append.rotary;
  if (problem.layout.rotary_dim == 0) return {};
  RotaryParams params{.cos = rotary.cos.data,
                      .sin = rotary.sin.data,
                      .cos_stride = rotary.cos.strides[0],
                      .sin_stride = rotary.sin.strides[0],
                      .cos_is_float32 = rotary.cos.dtype == DType::float32,
                      .sin_is_float32 = rotary.sin.dtype == DType::float32,
                      .num_positions = rotary.cos.size(0),
                      .num_pairs = static_cast<std::int32_t>(problem.layout.rotary_dim / 2),
                      .interleaved = rotary.interleaved,
                      .advances = advances};
  if (rotary.positions.defined()) {
    params.positions = static_cast<const std::int32_t*>(rotary.positions.data);
    params.positions_batch_stride = rotary.positions.strides[0];
    params.positions_row_stride = rotary.positions.strides[1];
  }
  return params;
}

MoveParams move_params(const ForwardParams& forward, const TensorView& source,
                       const Rows& destination) {
  return {.source = rows_of(source),
          .destination = destination,
          .lengths = forward.lengths,
          .pages = forward.pages,
          .batch = forward.batch,
          .num_rows = source.size(1),
          .num_heads = static_cast<std::int32_t>(source.size(2)),
          .dim = static_cast<std::int32_t>(source.size(3))};
}

TensorView rotated_queries(const AttentionCall& call, void* memory) {
  return {memory, call.q.dtype, call.q.device, call.q.shape, contiguous_strides(call.q.shape)};
}

}  // namespace

std::size_t decode_workspace_bytes(const Problem& problem) {
  const Problem::Sizes& sizes = problem.sizes;
  if (problem.layout.rotary_dim == 0) return 0;
  return static_cast<std::size_t>(sizes.total_q * sizes.num_heads_q * sizes.head_dim) *
         dtype_bytes(problem.dtype);
}

void launch_decode(const Problem& problem, const AttentionCall& call,
                   std::span<std::byte> workspace, Stream stream) {
  const CurrentDevice current(problem.device, "sm80_decode");
  const cudaStream_t queue = stream_of(stream);
  ForwardParams params = forward_params(problem, call);
  const auto move = [&](const MoveParams& rows) {
    check_cuda(move_rows(problem.dtype, rows, queue), "sm80_decode", problem.device);
  };
  if (problem.layout.seqlen_new > 0) {
    MoveParams keys = move_params(params, call.append.k, params.k);
    keys.to_cache = true;
    keys.rotary = rotary_params(problem, call, true);
    move(keys);
    MoveParams values = move_params(params, call.append.v, params.v);
    values.to_cache = true;
    move(values);
  }
  if (problem.layout.rotary_dim > 0) {
    const Rows rotated = rows_of(rotated_queries(call, workspace.data()));
    MoveParams queries = move_params(params, call.q, rotated);
    const bool advances = problem.layout.rotary_advances || call.append.rotary.positions.defined();
    queries.rotary = rotary_params(problem, call, advances);
    move(queries);
    params.q = rotated;
  }
  run_forward(problem, call, params, stream);
}

}  // namespace flashmha::cuda::sm80
