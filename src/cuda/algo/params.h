// What kernels are told about tensors: plain data, no more than one meaning a struct. Strides count
// elements; offsets are 64 bits wide.
#pragma once

#include <cstdint>

#include "flashmha/dtype.h"

namespace flashmha::cuda {

// Row (outer, row, head) begins at data + outer * outer_stride + row * row_stride + head *
// head_stride.
struct Rows {
  void* data = nullptr;
  std::int64_t outer_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t head_stride = 0;
  bool aligned = false;  // every row begins and ends at a multiple of 16 bytes
};

// An optional int32 vector on the device.
struct Indices {
  const std::int32_t* data = nullptr;
  std::int64_t stride = 0;
};

// How the sequences of a batch are found; the counterpart of find_sequence (attention/sequence.h).
struct Lengths {
  Indices cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k;  // ragged
  Indices cache_seqlens, cache_leftpad, cache_batch_idx;     // decode
  std::int64_t seqlen_q = 0;                                 // longest
  std::int64_t seqlen_k = 0;                                 // longest; the capacity of a cache
  std::int64_t seqlen_new = 0;                               // appended keys
  std::int64_t total_q = 0;  // rows there are, over all sequences of a ragged batch
  std::int64_t total_k = 0;
  bool is_cache = false;        // decode
  std::int64_t cache_rows = 0;  // dim 0 of a contiguous cache
};

// A block table; page_size 0: keys lie side by side.
struct Pages {
  const std::int32_t* table = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;
  std::int32_t page_size = 0;
  std::int32_t num_pages = 0;
};

// A tensor [batch, head, row, column] with stride 0 along dimensions that it is broadcast over.
struct PairMap {
  const void* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;
  bool is_float32 = false;  // else the element type of q, or bytes of a mask
};

// One number per head, or per batch row and head.
struct PerHead {
  const void* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  bool is_float32 = true;
};

}  // namespace flashmha::cuda
