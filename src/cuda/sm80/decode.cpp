// Attention to a cache: new keys are appended (rotated), queries are rotated into the workspace,
// then the forward kernel reads the cache where it lies. Few queries leave most multiprocessors
// idle: then keys are cut into parts, which a small kernel adds up. And of a single query, the
// heads that share a key head go through the kernel together, as rows, so that keys are read once.
#include <algorithm>

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

// Of one query that sees a whole cache, with nothing that tells heads apart.
bool heads_are_rows(const Problem& problem) {
  const Problem::Scores& scores = problem.scores;
  return problem.sizes.seqlen_q == 1 && problem.group_size() > 1 && problem.band.left < 0 &&
         problem.band.right < 0 && !scores.alibi && !scores.bias && !scores.mask && !scores.sinks;
}

// The same call with num_heads_kv heads of group_size queries.
ForwardParams with_heads_as_rows(ForwardParams params) {
  const std::int32_t group = params.group_size;
  for (Rows* rows : {&params.q, &params.out}) {
    rows->row_stride = rows->head_stride;
    rows->head_stride *= group;
  }
  params.lse_head_stride = group;  // rows of lse are neighbours
  params.lengths.seqlen_q = group;
  params.num_heads_q /= group;
  params.group_size = 1;
  return params;
}

Splits splits_of(const Problem& problem) {
  const Problem::Sizes& sizes = problem.sizes;
  Splits splits{.requested = std::min(problem.layout.num_splits, kMostSplits)};
  constexpr std::int64_t kMostRows = 64;  // of a block of the forward kernel
  const std::int64_t rows = heads_are_rows(problem) ? problem.group_size() : sizes.seqlen_q;
  if (splits.requested == 0 && rows > kMostRows) return splits;
  const std::int64_t least = splits.requested > 0 ? kSplitBlock : kMinSplitKeys;
  const std::int64_t parts = splits.requested > 0 ? splits.requested : kMostSplits;
  splits.most = static_cast<std::int32_t>(
      std::clamp<std::int64_t>((sizes.seqlen_k + least - 1) / least, 1, parts));
  return splits;
}

std::size_t padded(std::int64_t bytes) {
  constexpr std::int64_t kAlignment = 64;
  return static_cast<std::size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
}

// The parts of the workspace, one behind the other.
std::size_t query_bytes(const Problem& problem) {
  const Problem::Sizes& sizes = problem.sizes;
  if (problem.layout.rotary_dim == 0) return 0;
  return padded(sizes.total_q * sizes.num_heads_q * sizes.head_dim *
                static_cast<std::int64_t>(dtype_bytes(problem.dtype)));
}
std::size_t part_bytes(const Problem& problem, std::int64_t columns) {
  const std::int64_t most = splits_of(problem).most;
  if (most <= 1) return 0;
  return padded(most * problem.sizes.total_q * problem.sizes.num_heads_q * columns *
                static_cast<std::int64_t>(sizeof(float)));
}

}  // namespace

std::size_t decode_workspace_bytes(const Problem& problem) {
  return query_bytes(problem) + part_bytes(problem, 1) +
         part_bytes(problem, problem.sizes.head_dim_v);
}

void launch_decode(const Problem& problem, const AttentionCall& call,
                   std::span<std::byte> workspace, Stream stream) {
  const CurrentDevice current(problem.device, "sm80_decode");
  const cudaStream_t queue = stream_of(stream);
  ForwardParams params = forward_params(problem, call);
  const auto move = [&](const MoveParams& rows) {
    require_launched(move_rows(problem.dtype, rows, queue), call, problem, queue);
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
  const bool lse_rows_are_neighbours =
      params.lse == nullptr || params.lse_head_stride == 1 || problem.sizes.num_heads_q == 1;
  if (heads_are_rows(problem) && lse_rows_are_neighbours) params = with_heads_as_rows(params);
  Splits splits = splits_of(problem);
  splits.lse = reinterpret_cast<float*>(workspace.data() + query_bytes(problem));
  splits.out =
      reinterpret_cast<float*>(workspace.data() + query_bytes(problem) + part_bytes(problem, 1));
  run_forward(problem, call, params, splits, stream);
  if (splits.most > 1 && problem.sizes.total_q > 0) {
    require_launched(launch_combine(problem.dtype, params, splits, queue), call, problem, queue);
  }
}

}  // namespace flashmha::cuda::sm80
