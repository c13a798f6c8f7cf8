// What a decoding step does before attention: rotate queries, append keys and values.
#pragma once

#include "cuda/algo/params.h"
#include "cuda/launch.h"
#include "flashmha/dtype.h"

namespace flashmha::cuda {

// Rotary tables and where rows find their angles.
struct RotaryParams {
  const void* cos = nullptr;
  const void* sin = nullptr;
  std::int64_t cos_stride = 0;
  std::int64_t sin_stride = 0;
  bool cos_is_float32 = true;  // else the element type of q
  bool sin_is_float32 = true;
  std::int64_t num_positions = 0;
  std::int32_t num_pairs = 0;  // 0: no rotation
  bool interleaved = false;
  bool advances = true;                     // row i is one position further than row i - 1
  const std::int32_t* positions = nullptr;  // of row i; null: cache_seqlens + i
  std::int64_t positions_batch_stride = 0;
  std::int64_t positions_row_stride = 0;
};

// Rows [batch, num_rows, num_heads, dim] go somewhere, rotated on the way if there are pairs.
struct MoveParams {
  Rows source;
  Rows destination;
  Lengths lengths;
  Pages pages;            // of the destination
  bool to_cache = false;  // to slots cache_seqlens + row, else to the same row
  RotaryParams rotary;
  std::int32_t batch = 0;
  std::int64_t num_rows = 0;
  std::int32_t num_heads = 0;
  std::int32_t dim = 0;
};

Launch move_rows(DType dtype, const MoveParams& params, cudaStream_t stream);

}  // namespace flashmha::cuda
