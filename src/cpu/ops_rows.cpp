#include "cpu/ops_rows.h"

#include <cstring>

#include "core/check.h"

namespace flashmha::cpu {

Rows::Rows(const TensorView& view)
    : view_(view), count_(1), length_(view.size(-1)), evenly_spaced_(true) {
  // Rows are evenly spaced if every outer dimension continues the one inside it.
  for (int dim = view.rank() - 2; dim >= 0; --dim) {
    if (view.shape[dim] != 1) {
      if (count_ == 1) {
        row_stride_ = view.strides[dim];
      } else {
        evenly_spaced_ &= view.strides[dim] == count_ * row_stride_;
      }
    }
    count_ *= view.shape[dim];
  }
}

std::byte* Rows::element(std::int64_t r, std::int64_t begin) const {
  std::int64_t offset = begin;
  if (evenly_spaced_) {
    offset += r * row_stride_;
  } else {
    for (int dim = view_.rank() - 2; dim >= 0; --dim) {
      offset += r % view_.shape[dim] * view_.strides[dim];
      r /= view_.shape[dim];
    }
  }
  return static_cast<std::byte*>(view_.data) +
         offset * static_cast<std::int64_t>(dtype_bytes(view_.dtype));
}

const float* Rows::read(std::int64_t r, std::int64_t begin, std::int64_t n, float* buffer) const {
  const std::byte* from = element(r, begin);
  if (view_.dtype == DType::float32) return reinterpret_cast<const float*>(from);
  if (view_.dtype == DType::bfloat16) {
    row_kernels().widen_bf16(reinterpret_cast<const Bf16*>(from), n, buffer);
  } else {
    row_kernels().widen_fp16(reinterpret_cast<const Fp16*>(from), n, buffer);
  }
  return buffer;
}

float* Rows::target(std::int64_t r, std::int64_t begin, float* buffer) const {
  return view_.dtype == DType::float32 ? reinterpret_cast<float*>(element(r, begin)) : buffer;
}

void Rows::finish(std::int64_t r, std::int64_t begin, std::int64_t n, const float* values) const {
  std::byte* to = element(r, begin);
  if (view_.dtype == DType::bfloat16) {
    row_kernels().narrow_bf16(values, n, reinterpret_cast<Bf16*>(to));
  } else if (view_.dtype == DType::float16) {
    row_kernels().narrow_fp16(values, n, reinterpret_cast<Fp16*>(to));
  } else if (values != reinterpret_cast<const float*>(to)) {
    std::memcpy(to, values, static_cast<std::size_t>(n) * sizeof(float));
  }
}

void Rows::zero(std::int64_t r, std::int64_t begin, std::int64_t end) const {
  if (begin >= end) return;
  std::memset(element(r, begin), 0,
              static_cast<std::size_t>(end - begin) * dtype_bytes(view_.dtype));
}

std::vector<Rows> elementwise_rows(std::initializer_list<TensorView> views) {
  const bool contiguous = std::all_of(views.begin(), views.end(),
                                      [](const TensorView& view) { return view.is_contiguous(); });
  std::vector<Rows> rows;
  for (const TensorView& view : views) {
    rows.emplace_back(contiguous ? view.reshape({-1}) : view);
  }
  return rows;
}

std::vector<float> to_floats(const TensorView& view) {
  std::vector<float> values(static_cast<std::size_t>(view.numel()));
  const Rows rows(view);
  const float* from = rows.read(0, values.data());
  if (from != values.data()) std::copy(from, from + values.size(), values.begin());
  return values;
}

}  // namespace flashmha::cpu
