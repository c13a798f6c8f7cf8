#include "flashmha/tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/allocator.h"
#include "core/check.h"
#include "core/format.h"

namespace flashmha {
namespace {

// Product of the sizes in bytes, checked: shapes come from files and from arithmetic of callers.
std::size_t checked_bytes(const Shape& shape, DType dtype) {
  std::int64_t bytes = static_cast<std::int64_t>(dtype_bytes(dtype));
  bool overflow = false;
  bool empty = false;
  for (const std::int64_t size : shape) {
    check(size >= 0, "[Tensor::empty] sizes must not be negative; got {}", shape);
    empty |= size == 0;
    if (size > 0) overflow |= __builtin_mul_overflow(bytes, size, &bytes);
  }
  check(empty || !overflow, "[Tensor::empty] shape {} has more than 2^63 bytes", shape);
  return empty ? 0 : static_cast<std::size_t>(bytes);
}

int checked_dim(const TensorView& view, int dim, const char* function) {
  const int rank = view.rank();
  if (dim >= -rank && dim < rank) return dim < 0 ? dim + rank : dim;  // kernels ask once per row
  fail(ErrorCode::invalid_argument, "[{}] dimension {} is outside of rank {}; got {}", function,
       dim, rank, view);
}

std::byte* element(const TensorView& view, std::int64_t offset) {
  return static_cast<std::byte*>(view.data) +
         offset * static_cast<std::int64_t>(dtype_bytes(view.dtype));
}

}  // namespace

Shape::Shape(std::initializer_list<std::int64_t> values)
    : Shape(std::span<const std::int64_t>(values.begin(), values.size())) {}

Shape::Shape(std::span<const std::int64_t> values) : rank(static_cast<int>(values.size())) {
  check(rank <= kMaxRank, "[Shape] at most {} dimensions are supported; got {}", kMaxRank, rank);
  std::copy(values.begin(), values.end(), sizes.begin());
}

std::string to_string(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(shape.begin(), shape.end(), ","));
}

std::int64_t TensorView::size(int dim) const {
  return shape[checked_dim(*this, dim, "TensorView::size")];
}

std::int64_t TensorView::stride(int dim) const {
  return strides[checked_dim(*this, dim, "TensorView::stride")];
}

std::int64_t TensorView::numel() const {
  std::int64_t count = defined() ? 1 : 0;
  for (const std::int64_t size : shape)
    count *= size;
  return count;
}

bool TensorView::is_contiguous() const {
  if (numel() == 0) return true;  // no elements, no distances between them
  std::int64_t expected = 1;
  for (int dim = rank() - 1; dim >= 0; --dim) {
    if (shape[dim] != 1 && strides[dim] != expected) return false;
    expected *= shape[dim];
  }
  return true;
}

void TensorView::require_dtype(DType expected) const {
  if (dtype == expected) return;  // before the message is formatted: this runs once per element
  check(false, "[TensorView::as] elements are {}, not {}; got {}", dtype_name(dtype),
        dtype_name(expected), *this);
}

TensorView TensorView::slice(int dim, std::int64_t begin, std::int64_t end) const {
  const int d = checked_dim(*this, dim, "TensorView::slice");
  check(0 <= begin && begin <= end && end <= shape[d],
        "[TensorView::slice] range [{}, {}) does not fit dimension {} of {}", begin, end, d, *this);
  TensorView result = *this;
  result.data = element(*this, begin * strides[d]);
  result.shape[d] = end - begin;
  return result;
}

TensorView TensorView::select(int dim, std::int64_t index) const {
  const int d = checked_dim(*this, dim, "TensorView::select");
  check(rank() >= 2, "[TensorView::select] needs rank 2 or more; got {}", *this);
  check(0 <= index && index < shape[d],
        "[TensorView::select] index {} is outside of dimension {} of {}", index, d, *this);
  TensorView result = *this;
  result.data = element(*this, index * strides[d]);
  for (int i = d; i + 1 < rank(); ++i) {
    result.shape[i] = shape[i + 1];
    result.strides[i] = strides[i + 1];
  }
  --result.shape.rank;
  --result.strides.rank;
  result.shape[result.shape.rank] = 0;  // unused sizes stay 0, so that shapes compare equal
  result.strides[result.shape.rank] = 0;
  return result;
}

TensorView TensorView::transpose(int dim0, int dim1) const {
  const int d0 = checked_dim(*this, dim0, "TensorView::transpose");
  const int d1 = checked_dim(*this, dim1, "TensorView::transpose");
  TensorView result = *this;
  std::swap(result.shape[d0], result.shape[d1]);
  std::swap(result.strides[d0], result.strides[d1]);
  return result;
}

TensorView TensorView::reshape(const Shape& new_shape) const {
  check(is_contiguous(), "[TensorView::reshape] needs a contiguous tensor; got {} with strides {}",
        *this, strides);
  Shape resolved = new_shape;
  std::int64_t known = 1;
  int inferred = -1;
  for (int dim = 0; dim < resolved.rank; ++dim) {
    if (resolved[dim] == -1) {
      check(inferred < 0, "[TensorView::reshape] only one size may be -1; got {}", new_shape);
      inferred = dim;
    } else {
      known *= resolved[dim];
    }
  }
  if (inferred >= 0 && known > 0) resolved[inferred] = numel() / known;
  TensorView result = *this;
  result.shape = resolved;
  result.strides = contiguous_strides(resolved);
  check(result.numel() == numel(), "[TensorView::reshape] {} does not have the size of {}",
        new_shape, *this);
  return result;
}

TensorView TensorView::broadcast_to(const Shape& target) const {
  const int missing = target.rank - rank();
  TensorView result = *this;
  result.shape = target;
  result.strides = target;
  for (int dim = 0; dim < target.rank; ++dim) {
    const bool present = dim >= missing;
    const std::int64_t size = present ? shape[dim - missing] : 1;
    check(missing >= 0 && (size == target[dim] || size == 1),
          "[TensorView::broadcast_to] {} cannot be broadcast to {}", *this, target);
    result.strides[dim] = present && size == target[dim] ? strides[dim - missing] : 0;
  }
  check(missing >= 0, "[TensorView::broadcast_to] {} cannot be broadcast to {}", *this, target);
  return result;
}

std::string to_string(const TensorView& view) {
  if (!view.defined()) return "not given";
  return fmt::format("{} {} on {}", dtype_name(view.dtype), to_string(view.shape),
                     device_name(view.device));
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  std::int64_t stride = 1;
  for (int dim = shape.rank - 1; dim >= 0; --dim) {
    strides[dim] = stride;
    stride *= std::max<std::int64_t>(shape[dim], 1);
  }
  return strides;
}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device, Stream stream) {
  check(shape.rank > 0, "[Tensor::empty] needs at least one dimension");
  const std::size_t bytes = checked_bytes(shape, dtype);
  Tensor tensor;
  tensor.owner_ = allocate(bytes, device, stream);
  tensor.view_ = {tensor.owner_.get(), dtype, device, shape, contiguous_strides(shape)};
  return tensor;
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device, Stream stream) {
  Tensor tensor = empty(shape, dtype, device, stream);
  fill(tensor, 0.0, stream);
  return tensor;
}

Tensor Tensor::adopt(const TensorView& view, std::shared_ptr<void> owner) {
  Tensor tensor;
  tensor.view_ = view;
  tensor.owner_ = std::move(owner);
  return tensor;
}

void copy_values(const Tensor& destination, const void* values, std::size_t count) {
  check(static_cast<std::int64_t>(count) == destination.numel(),
        "[Tensor::from] {} values do not fill shape {}", count, destination.shape());
  if (count > 0) std::memcpy(destination.view().data, values, destination.view().bytes());
}

}  // namespace flashmha
