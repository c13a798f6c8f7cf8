#include "attention/sequence.h"

#include <algorithm>

#include "core/check.h"
#include "core/visit.h"

namespace flashmha {
namespace {

std::int64_t index_at(const TensorView& tensor, std::int64_t position) {
  return tensor.as<std::int32_t>()[position * tensor.strides[0]];
}

std::byte* at(const TensorView& tensor, std::int64_t offset) {
  return static_cast<std::byte*>(tensor.data) +
         offset * static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
}

// A ragged tensor is [total, heads, dim]; every other one is [outer, rows, heads, dim].
HeadRows rows_of(const TensorView& tensor, std::int64_t outer, std::int64_t row,
                 std::int64_t head) {
  const bool flat = tensor.rank() == 3;
  const int row_dim = flat ? 0 : 1;
  const std::int64_t outer_offset = flat ? 0 : outer * tensor.strides[0];
  return {
      at(tensor, outer_offset + row * tensor.strides[row_dim] + head * tensor.strides[row_dim + 1]),
      tensor.strides[row_dim], dtype_bytes(tensor.dtype)};
}

Sequence find_ragged(const Problem& problem, const AttentionCall& call, std::int64_t batch) {
  const Sequences& sequences = call.sequences;
  Sequence sequence{.batch = batch};
  sequence.first_row_q = index_at(sequences.cu_seqlens_q, batch);
  sequence.allocated_q = index_at(sequences.cu_seqlens_q, batch + 1) - sequence.first_row_q;
  sequence.first_row_k = index_at(sequences.cu_seqlens_k, batch);
  sequence.allocated_k = index_at(sequences.cu_seqlens_k, batch + 1) - sequence.first_row_k;
  sequence.seqlen_q =
      sequences.seqused_q.defined() ? index_at(sequences.seqused_q, batch) : sequence.allocated_q;
  sequence.seqlen_k =
      sequences.seqused_k.defined() ? index_at(sequences.seqused_k, batch) : sequence.allocated_k;
  if (problem.layout.page_size > 0) sequence.first_row_k = 0;
  return sequence;
}

Sequence find_cached(const Problem& problem, const AttentionCall& call, std::int64_t batch) {
  const KVCacheView& cache = call.cache;
  const std::int64_t leftpad =
      cache.cache_leftpad.defined() ? index_at(cache.cache_leftpad, batch) : 0;
  const std::int64_t filled =
      cache.cache_seqlens.defined() ? index_at(cache.cache_seqlens, batch) : problem.sizes.seqlen_k;
  Sequence sequence{.batch = batch};
  sequence.seqlen_q = sequence.allocated_q = problem.sizes.seqlen_q;
  sequence.seqlen_k = sequence.allocated_k = filled + problem.layout.seqlen_new - leftpad;
  sequence.first_row_k = leftpad;
  sequence.batch_index_k =
      cache.cache_batch_idx.defined() ? index_at(cache.cache_batch_idx, batch) : batch;
  return sequence;
}

}  // namespace

Sequence find_sequence(const Problem& problem, const AttentionCall& call, std::int64_t batch) {
  if (problem.layout.ragged) return find_ragged(problem, call, batch);
  if (problem.pass == Pass::decode) return find_cached(problem, call, batch);
  const Problem::Sizes& sizes = problem.sizes;
  Sequence sequence{.batch = batch};
  sequence.seqlen_q = sequence.allocated_q = sizes.seqlen_q;
  sequence.seqlen_k = sequence.allocated_k = sizes.seqlen_k;
  sequence.batch_index_k = batch;
  return sequence;
}

HeadRows query_rows(const TensorView& tensor, const Sequence& sequence, std::int64_t head_q) {
  return rows_of(tensor, sequence.batch, sequence.first_row_q, head_q);
}

HeadRows key_rows(const TensorView& tensor, const Sequence& sequence, std::int64_t head_kv) {
  return rows_of(tensor, sequence.batch_index_k, sequence.first_row_k, head_kv);
}

KeyRun find_keys(const Problem& problem, const AttentionCall& call, const TensorView& tensor,
                 const Sequence& sequence, std::int64_t head_kv, std::int64_t first,
                 std::int64_t limit) {
  const std::int64_t page_size = problem.layout.page_size;
  if (page_size == 0) {
    HeadRows rows = key_rows(tensor, sequence, head_kv);
    rows.data = rows.row(first);
    return {rows, limit};
  }
  const TensorView& table =
      problem.pass == Pass::decode ? call.cache.block_table : call.sequences.block_table;
  const std::int64_t slot = sequence.first_row_k + first;
  const std::int64_t page = table.as<std::int32_t>()[sequence.batch * table.strides[0] +
                                                     slot / page_size * table.strides[1]];
  const std::int64_t slot_in_page = slot % page_size;
  return {rows_of(tensor, page, slot_in_page, head_kv), std::min(limit, page_size - slot_in_page)};
}

std::int64_t lse_offset(const TensorView& lse, const Sequence& sequence, std::int64_t head_q) {
  if (lse.rank() == 2) return head_q * lse.strides[0] + sequence.first_row_q;
  return sequence.batch * lse.strides[0] + head_q * lse.strides[1];
}

ScoreMap score_map(const TensorView& tensor, const Sequence& sequence, std::int64_t head_q) {
  const auto stride = [&](int dim) { return tensor.shape[dim] == 1 ? 0 : tensor.strides[dim]; };
  return {at(tensor, sequence.batch * stride(0) + head_q * stride(1)), tensor.dtype, stride(2),
          stride(3)};
}

std::int64_t key_position(const AttentionCall& call, const Sequence& sequence, std::int64_t i) {
  const TensorView& positions = call.append.rotary.positions;
  if (positions.defined()) {
    return positions
        .as<std::int32_t>()[sequence.batch * positions.strides[0] + i * positions.strides[1]];
  }
  const TensorView& filled = call.cache.cache_seqlens;
  return (filled.defined() ? index_at(filled, sequence.batch) : 0) + i;
}

std::int64_t query_position(const Problem& problem, const AttentionCall& call,
                            const Sequence& sequence, std::int64_t i) {
  const bool positions_given = call.append.rotary.positions.defined();
  return key_position(call, sequence, positions_given || problem.layout.rotary_advances ? i : 0);
}

float alibi_slope(const AttentionCall& call, const Sequence& sequence, std::int64_t head_q) {
  const TensorView& slopes = call.options.alibi_slopes;
  if (!slopes.defined()) return 0.0f;
  const std::int64_t offset = slopes.rank() == 1
                                  ? head_q * slopes.strides[0]
                                  : sequence.batch * slopes.strides[0] + head_q * slopes.strides[1];
  return slopes.as<float>()[offset];
}

double element_as_double(const TensorView& tensor, std::int64_t offset) {
  return visit_floating(tensor.dtype, [&]<class T>(T) -> double {
    const T value = tensor.as<T>()[offset];
    if constexpr (std::is_same_v<T, double>) {
      return value;
    } else {
      return static_cast<float>(value);
    }
  });
}

}  // namespace flashmha
