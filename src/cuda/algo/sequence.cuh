// Sequences of a batch and rows of keys, as the device finds them. Index tensors of a GPU cannot be
// checked before the launch; bounds are enforced here, so that wrong ones give wrong results but no
// access outside of the tensors.
#pragma once

#include "attention/sequence.h"
#include "cuda/algo/params.h"

namespace flashmha::cuda {

__device__ __forceinline__ std::int64_t bounded(std::int64_t value, std::int64_t low,
                                                std::int64_t high) {
  return value < low ? low : value > high ? high : value;
}

__device__ __forceinline__ std::int64_t index_at(const Indices& indices, std::int64_t i) {
  return indices.data[i * indices.stride];
}

__device__ inline Sequence find_ragged(const Lengths& lengths, std::int64_t batch, bool paged) {
  Sequence s{.batch = batch};
  s.first_row_q = bounded(index_at(lengths.cu_seqlens_q, batch), 0, lengths.total_q);
  s.allocated_q = bounded(index_at(lengths.cu_seqlens_q, batch + 1) - s.first_row_q, 0,
                          lengths.total_q - s.first_row_q);
  const std::int64_t first_k = index_at(lengths.cu_seqlens_k, batch);
  s.first_row_k = paged ? 0 : bounded(first_k, 0, lengths.total_k);
  s.allocated_k = bounded(index_at(lengths.cu_seqlens_k, batch + 1) - first_k, 0,
                          paged ? lengths.seqlen_k : lengths.total_k - s.first_row_k);
  s.seqlen_q = lengths.seqused_q.data
                   ? bounded(index_at(lengths.seqused_q, batch), 0, s.allocated_q)
                   : s.allocated_q;
  s.seqlen_k = lengths.seqused_k.data
                   ? bounded(index_at(lengths.seqused_k, batch), 0, s.allocated_k)
                   : s.allocated_k;
  return s;
}

__device__ inline Sequence find_cached(const Lengths& lengths, std::int64_t batch) {
  Sequence s{.batch = batch};
  s.seqlen_q = s.allocated_q = lengths.seqlen_q;
  const std::int64_t filled = lengths.cache_seqlens.data
                                  ? index_at(lengths.cache_seqlens, batch) + lengths.seqlen_new
                                  : lengths.seqlen_k;
  const std::int64_t total = bounded(filled, 0, lengths.seqlen_k);
  s.first_row_k =
      lengths.cache_leftpad.data ? bounded(index_at(lengths.cache_leftpad, batch), 0, total) : 0;
  s.seqlen_k = s.allocated_k = total - s.first_row_k;
  s.batch_index_k = lengths.cache_batch_idx.data ? bounded(index_at(lengths.cache_batch_idx, batch),
                                                           0, lengths.cache_rows - 1)
                                                 : batch;
  return s;
}

__device__ inline Sequence find_sequence(const Lengths& lengths, std::int64_t batch, bool paged) {
  if (lengths.cu_seqlens_q.data) return find_ragged(lengths, batch, paged);
  if (lengths.is_cache) return find_cached(lengths, batch);
  Sequence s{.batch = batch};
  s.seqlen_q = s.allocated_q = lengths.seqlen_q;
  s.seqlen_k = s.allocated_k = lengths.seqlen_k;
  s.batch_index_k = batch;
  return s;
}

// Rows of one head that lie at even distances.
template <class T>
struct EvenRows {
  T* data;
  std::int64_t stride;
  __device__ __forceinline__ const T* row(int index) const { return data + index * stride; }
};

// Rows of one head of keys or values, in pages or not. A page that does not exist has no rows.
template <class T>
struct KeyRows {
  const T* data;  // of the head; without pages: row 0 of the sequence
  std::int64_t page_stride;
  std::int64_t row_stride;
  const std::int32_t* table;  // of the sequence; null: no pages
  std::int64_t table_stride;
  std::int64_t first_slot;
  std::int32_t page_size;
  std::int32_t num_pages;

  __device__ KeyRows(const Rows& rows, const Pages& pages, const Sequence& s, std::int64_t head)
      : data(static_cast<const T*>(rows.data) + head * rows.head_stride),
        page_stride(rows.outer_stride),
        row_stride(rows.row_stride),
        table(nullptr),
        table_stride(pages.column_stride),
        first_slot(s.first_row_k),
        page_size(pages.page_size),
        num_pages(pages.num_pages) {
    if (pages.page_size > 0) {
      table = pages.table + s.batch * pages.row_stride;
    } else {
      data += s.batch_index_k * rows.outer_stride + s.first_row_k * rows.row_stride;
    }
  }

  __device__ __forceinline__ const T* row(int index) const {
    if (table == nullptr) return data + index * row_stride;
    const auto slot = static_cast<std::uint32_t>(first_slot + index);
    const auto size = static_cast<std::uint32_t>(page_size);
    const std::int32_t page = table[slot / size * table_stride];
    if (page < 0 || page >= num_pages) return nullptr;
    return data + page * page_stride + slot % size * row_stride;
  }
};

}  // namespace flashmha::cuda
