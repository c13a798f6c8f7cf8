#include "cuda/params.h"

namespace flashmha::cuda {
namespace {

Indices indices_of(const TensorView& tensor) {
  if (!tensor.defined()) return {};
  return {static_cast<const std::int32_t*>(tensor.data), tensor.strides[0]};
}

PairMap pair_map(const TensorView& tensor) {
  if (!tensor.defined()) return {};
  const auto stride = [&](int dim) { return tensor.shape[dim] == 1 ? 0 : tensor.strides[dim]; };
  return {tensor.data, stride(0), stride(1), stride(2), stride(3), tensor.dtype == DType::float32};
}

PerHead per_head(const TensorView& tensor) {
  if (!tensor.defined()) return {};
  return {tensor.data, tensor.rank() == 2 ? tensor.strides[0] : 0,
          tensor.strides[tensor.rank() - 1], tensor.dtype == DType::float32};
}

Lengths lengths_of(const Problem& problem, const AttentionCall& call) {
  const Problem::Sizes& sizes = problem.sizes;
  Lengths lengths{.seqlen_q = sizes.seqlen_q,
                  .seqlen_k = sizes.seqlen_k,
                  .seqlen_new = problem.layout.seqlen_new,
                  .total_q = sizes.total_q,
                  .total_k = sizes.total_k};
  if (problem.layout.ragged) {
    lengths.cu_seqlens_q = indices_of(call.sequences.cu_seqlens_q);
    lengths.cu_seqlens_k = indices_of(call.sequences.cu_seqlens_k);
    lengths.seqused_q = indices_of(call.sequences.seqused_q);
    lengths.seqused_k = indices_of(call.sequences.seqused_k);
  }
  if (problem.pass == Pass::decode) {
    lengths.cache_seqlens = indices_of(call.cache.cache_seqlens);
    lengths.cache_leftpad = indices_of(call.cache.cache_leftpad);
    lengths.cache_batch_idx = indices_of(call.cache.cache_batch_idx);
    lengths.is_cache = true;
    lengths.cache_rows = call.cache.k.size(0);
  }
  return lengths;
}

Pages pages_of(const Problem& problem, const AttentionCall& call) {
  if (problem.layout.page_size == 0) return {};
  const bool decode = problem.pass == Pass::decode;
  const TensorView& table = decode ? call.cache.block_table : call.sequences.block_table;
  return {static_cast<const std::int32_t*>(table.data), table.strides[0], table.strides[1],
          static_cast<std::int32_t>(problem.layout.page_size),
          static_cast<std::int32_t>((decode ? call.cache.k : call.k).size(0))};
}

}  // namespace

Rows rows_of(const TensorView& tensor) {
  const int first = tensor.rank() - 3;
  Rows rows{tensor.data, first > 0 ? tensor.strides[0] : 0, tensor.strides[first],
            tensor.strides[first + 1]};
  constexpr std::int64_t kElements = 8;  // of 16 bits in 16 bytes
  rows.aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 &&
                 rows.outer_stride % kElements == 0 && rows.row_stride % kElements == 0 &&
                 rows.head_stride % kElements == 0 && tensor.size(-1) % kElements == 0;
  return rows;
}

ForwardParams forward_params(const Problem& problem, const AttentionCall& call) {
  const bool decode = problem.pass == Pass::decode;
  const Problem::Sizes& sizes = problem.sizes;
  const AttentionOptions& options = call.options;
  ForwardParams params{.q = rows_of(call.q),
                       .k = rows_of(decode ? call.cache.k : call.k),
                       .v = rows_of(decode ? call.cache.v : call.v),
                       .out = rows_of(call.out),
                       .lengths = lengths_of(problem, call),
                       .pages = pages_of(problem, call),
                       .band = problem.band,
                       .batch = static_cast<std::int32_t>(sizes.batch),
                       .num_heads_q = static_cast<std::int32_t>(sizes.num_heads_q),
                       .group_size = static_cast<std::int32_t>(problem.group_size()),
                       .head_dim = static_cast<std::int32_t>(sizes.head_dim),
                       .head_dim_v = static_cast<std::int32_t>(sizes.head_dim_v)};
  if (call.lse.defined()) {
    const bool ragged = call.lse.rank() == 2;
    params.lse = call.lse.as<float>();
    params.lse_batch_stride = ragged ? 0 : call.lse.strides[0];
    params.lse_head_stride = call.lse.strides[ragged ? 0 : 1];
  }
  params.scores = {.softmax_scale = problem.scores.softmax_scale,
                   .softcap = problem.scores.softcap,
                   .alibi = per_head(options.alibi_slopes),
                   .bias = pair_map(options.bias),
                   .mask = pair_map(options.mask),
                   .sinks = per_head(options.sinks),
                   .dropout = options.dropout};
  return params;
}

}  // namespace flashmha::cuda
