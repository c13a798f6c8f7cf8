// Helpers to state rules about tensors with good messages.
#pragma once

#include <cstdlib>
#include <string_view>

#include "core/check.h"
#include "core/format.h"
#include "flashmha/tensor.h"

namespace flashmha {

// From the smallest stride up, every dimension steps over all elements that the dimensions before
// it reach: then no two elements share memory. Some layouts that interleave without touching break
// it too; nobody has them.
inline bool elements_are_apart(const TensorView& tensor) {
  if (tensor.numel() == 0) return true;
  const auto step = [&](int dim) { return std::abs(tensor.strides[dim]); };
  for (int dim = 0; dim < tensor.rank(); ++dim) {
    std::int64_t reach = 0;  // of the dimensions before this one
    for (int other = 0; other < tensor.rank(); ++other) {
      const bool is_before = step(other) < step(dim) || (step(other) == step(dim) && other < dim);
      std::int64_t distance = 0;
      if (is_before && (__builtin_mul_overflow(tensor.shape[other] - 1, step(other), &distance) ||
                        __builtin_add_overflow(reach, distance, &reach))) {
        return false;
      }
    }
    if (tensor.shape[dim] > 1 && step(dim) <= reach) return false;
  }
  return true;
}

// States rules on behalf of one API function: require(ok, "rule ({}); got ...", values).
class Rules {
 public:
  explicit Rules(std::string_view function) : function_(function) {}

  template <class... Args>
  void require(bool condition, fmt::format_string<Args...> message, Args&&... args) const {
    if (!condition) [[unlikely]] {
      fail(ErrorCode::invalid_argument,
           fmt::format("[{}] {}", function_, fmt::format(message, std::forward<Args>(args)...)));
    }
  }

  void given(const TensorView& tensor, std::string_view what) const {
    require(tensor.defined(), "{} must be given", what);
  }
  void has_rank(const TensorView& tensor, std::string_view what, int rank,
                std::string_view axes) const {
    given(tensor, what);
    require(tensor.rank() == rank, "{} must be {}; got {}", what, axes, tensor);
  }
  void has_shape(const TensorView& tensor, std::string_view what, const Shape& shape,
                 std::string_view axes) const {
    given(tensor, what);
    require(tensor.shape == shape, "{} must be {} = {}; got {}", what, axes, shape, tensor);
  }
  void has_dtype(const TensorView& tensor, std::string_view what, DType dtype) const {
    require(tensor.dtype == dtype, "{} must be {}; got {}", what, dtype_name(dtype), tensor);
  }
  void on_device(const TensorView& tensor, std::string_view what, Device device) const {
    require(tensor.device == device, "{} must be on {} like q; got {}", what, device, tensor);
  }
  void unit_stride(const TensorView& tensor, std::string_view what) const {
    const int last = tensor.rank() - 1;
    require(tensor.shape[last] <= 1 || tensor.strides[last] == 1 || tensor.numel() == 0,
            "the last dimension of {} must have stride 1; got {} with strides {}", what, tensor,
            tensor.strides);
  }
  // Of what is written: threads write elements in any order.
  void no_overlap(const TensorView& tensor, std::string_view what) const {
    require(elements_are_apart(tensor), "{} must not overlap itself; got {} with strides {}", what,
            tensor, tensor.strides);
  }
  void has_data(const TensorView& tensor, std::string_view what) const {
    require(tensor.data != nullptr || tensor.numel() == 0, "{} has no memory; got {}", what,
            tensor);
  }

  // The common demands on an optional int32 index tensor of a shape.
  void index_tensor(const TensorView& tensor, std::string_view what, const Shape& shape,
                    std::string_view axes, Device device) const {
    has_shape(tensor, what, shape, axes);
    has_dtype(tensor, what, DType::int32);
    on_device(tensor, what, device);
    has_data(tensor, what);
  }

 private:
  std::string_view function_;
};

// The type of lse and of the gradients of bias and sinks, for inputs of a type.
inline DType statistics_dtype(DType dtype) {
  return dtype == DType::float64 ? DType::float64 : DType::float32;
}

// Element i of a host int32 vector.
inline std::int64_t int_at(const TensorView& tensor, std::int64_t i) {
  return static_cast<const std::int32_t*>(tensor.data)[i * tensor.strides[0]];
}

}  // namespace flashmha
