// A tensor as rows for a kernel: its last dimension, numbered over all others in row-major order.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <utility>

#include "flashmha/tensor.h"

namespace flashmha::cuda::ops {

// Elements that a thread handles at a time: 16 bytes of 16-bit numbers.
inline constexpr int kVector = 8;

struct TensorRows {
  void* data = nullptr;
  DType dtype = DType::float32;
  bool aligned = false;       // runs of kVector elements can be read as a whole
  bool evenly_spaced = true;  // row r starts at r * row_stride
  int num_outer = 0;          // dimensions above the rows
  std::int64_t count = 1;     // of rows
  std::int64_t length = 0;    // of a row
  std::int64_t step = 1;      // between elements of a row
  std::int64_t row_stride = 0;
  std::int64_t sizes[Shape::kMaxRank - 1] = {};
  std::int64_t strides[Shape::kMaxRank - 1] = {};
};

// Of a floating tensor. Defined tensors only.
inline TensorRows rows_of(const TensorView& view) {
  TensorRows rows{.data = view.data, .dtype = view.dtype, .num_outer = view.rank() - 1};
  rows.length = view.size(-1);
  rows.step = rows.length > 1 ? view.stride(-1) : 1;
  const auto granule = static_cast<std::int64_t>(16 / dtype_bytes(view.dtype));
  rows.aligned = rows.step == 1 && reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0;
  for (int dim = rows.num_outer - 1; dim >= 0; --dim) {
    rows.sizes[dim] = view.shape[dim];
    rows.strides[dim] = view.strides[dim];
    if (view.shape[dim] != 1) {
      rows.aligned &= view.strides[dim] % granule == 0;
      if (rows.count == 1) {
        rows.row_stride = view.strides[dim];
      } else {
        rows.evenly_spaced &= view.strides[dim] == rows.count * rows.row_stride;
      }
    }
    rows.count *= view.shape[dim];
  }
  return rows;
}

}  // namespace flashmha::cuda::ops
