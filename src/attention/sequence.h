// Where the rows of one sequence lie, for every layout: dense, ragged, cache, paged. Backends loop
// over sequences and never look at cu_seqlens, block tables or left padding themselves.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flashmha/plan.h"

namespace flashmha {

// Rows of one head of one sequence in memory: row r starts r * row_stride elements after data.
struct HeadRows {
  std::byte* data = nullptr;
  std::int64_t row_stride = 0;  // in elements
  std::size_t element_bytes = 0;

  std::byte* row(std::int64_t index) const {
    return data + index * row_stride * static_cast<std::int64_t>(element_bytes);
  }
};

// One sequence of the batch.
struct Sequence {
  std::int64_t batch = 0;          // index in the batch: for bias, mask, ALiBi and dropout
  std::int64_t seqlen_q = 0;       // real query rows
  std::int64_t seqlen_k = 0;       // real keys (after left padding, with appended keys)
  std::int64_t allocated_q = 0;    // rows that out and lse own; from seqlen_q on: 0 and -inf
  std::int64_t allocated_k = 0;    // rows that dk and dv own; rows from seqlen_k on become 0
  std::int64_t first_row_q = 0;    // row of q, out and dq (dim 1 of dense, dim 0 of ragged tensors)
  std::int64_t first_row_k = 0;    // row of k and v; of a cache: the slot of key 0
  std::int64_t batch_index_k = 0;  // dim 0 of dense k and v or of the cache
};

// Looks up sequence b. The call has passed make_problem; cu_seqlens, cache_seqlens and the like are
// read here.
Sequence find_sequence(const Problem& problem, const AttentionCall& call, std::int64_t batch);

// Rows of q-like tensors (q, out, dout, dq) of one head: [batch, seqlen, heads, dim] or
// [total, heads, dim].
HeadRows query_rows(const TensorView& tensor, const Sequence& sequence, std::int64_t head_q);

// Rows of contiguous k-like tensors (k, v, dk, dv or an unpaged cache) of one head.
HeadRows key_rows(const TensorView& tensor, const Sequence& sequence, std::int64_t head_kv);

// A run of keys whose rows are evenly spaced.
struct KeyRun {
  HeadRows rows;            // row 0 is the key asked for
  std::int64_t length = 0;  // keys in the run, at least 1
};

// The longest evenly spaced run of keys that starts at key `first` and stays within `limit` keys:
// all of them unless the problem is paged. tensor is call.k / call.v or call.cache.k /
// call.cache.v.
KeyRun find_keys(const Problem& problem, const AttentionCall& call, const TensorView& tensor,
                 const Sequence& sequence, std::int64_t head_kv, std::int64_t first,
                 std::int64_t limit);

// Offset of row 0 of one head in lse and dlse ([batch, num_heads_q, seqlen_q] or [num_heads_q,
// total_q]); rows are neighbours.
std::int64_t lse_offset(const TensorView& lse, const Sequence& sequence, std::int64_t head_q);

// An additive bias or boolean mask of one head: element (i, j) lies at
// data[i * row_stride + j * column_stride]; strides are 0 along broadcast dimensions.
struct ScoreMap {
  std::byte* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;
};
ScoreMap score_map(const TensorView& tensor, const Sequence& sequence, std::int64_t head_q);

// The row of the rotary tables for query i, and for appended key i, of the sequence.
std::int64_t query_position(const Problem& problem, const AttentionCall& call,
                            const Sequence& sequence, std::int64_t i);
std::int64_t key_position(const AttentionCall& call, const Sequence& sequence, std::int64_t i);

// ALiBi slope of a head; 0 if the call has none.
float alibi_slope(const AttentionCall& call, const Sequence& sequence, std::int64_t head_q);

// An element of a small float tensor (sinks, cos, sin) of any floating dtype.
double element_as_double(const TensorView& tensor, std::int64_t offset);

}  // namespace flashmha
