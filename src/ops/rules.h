// The rules that many operations share, each stated once. `function` is the name in the message.
// Messages are formatted only when a rule is broken.
#pragma once

#include <initializer_list>
#include <string_view>

#include "core/check.h"
#include "core/format.h"
#include "ops/table.h"

namespace flashmha::ops {

struct Named {
  std::string_view name;
  const TensorView& view;
};

// The backend of the device that all given tensors live on.
inline const OpsTable& backend(std::string_view function, std::initializer_list<Named> tensors) {
  const Named& first = *tensors.begin();
  for (const Named& tensor : tensors) {
    check(!tensor.view.defined() || tensor.view.device == first.view.device,
          "[{}] {} and {} must be on one device; got {} and {}", function, first.name, tensor.name,
          first.view, tensor.view);
  }
  return first.view.device.type == DeviceType::cpu ? cpu_ops() : cuda_ops();
}

inline void require_given(std::string_view function, const Named& tensor) {
  check(tensor.view.defined(), "[{}] {} must be given", function, tensor.name);
}

// float32, bfloat16 or float16.
inline void require_floating(std::string_view function, std::initializer_list<Named> tensors) {
  for (const Named& tensor : tensors) {
    require_given(function, tensor);
    check(is_floating(tensor.view.dtype) && tensor.view.dtype != DType::float64,
          "[{}] {} must be float32, bfloat16 or float16; got {}", function, tensor.name,
          tensor.view);
  }
}

inline void require_dtype(std::string_view function, const Named& tensor, DType dtype) {
  require_given(function, tensor);
  check(tensor.view.dtype == dtype, "[{}] {} must be {}; got {}", function, tensor.name,
        dtype_name(dtype), tensor.view);
}

inline void require_index(std::string_view function, const Named& tensor) {
  require_given(function, tensor);
  check(tensor.view.dtype == DType::int32 || tensor.view.dtype == DType::int64,
        "[{}] {} must be int32 or int64; got {}", function, tensor.name, tensor.view);
  check(tensor.view.is_contiguous(), "[{}] {} must be contiguous; got {} with strides {}", function,
        tensor.name, tensor.view, tensor.view.strides);
}

inline void require_shape(std::string_view function, const Named& tensor, const Shape& shape) {
  check(tensor.view.shape == shape, "[{}] {} must have shape {}; got {}", function, tensor.name,
        shape, tensor.view);
}

// Last dimension with stride 1.
inline void require_rows(std::string_view function, std::initializer_list<Named> tensors) {
  for (const Named& tensor : tensors) {
    require_given(function, tensor);
    check(tensor.view.size(-1) <= 1 || tensor.view.stride(-1) == 1,
          "[{}] the last dimension of {} must have stride 1; got {} with strides {}", function,
          tensor.name, tensor.view, tensor.view.strides);
  }
}

inline void require_contiguous(std::string_view function, const Named& tensor) {
  require_given(function, tensor);
  check(tensor.view.is_contiguous(), "[{}] {} must be contiguous; got {} with strides {}", function,
        tensor.name, tensor.view, tensor.view.strides);
}

// A shape without its last dimension; [1] for rank 1, so that one row has one number.
inline Shape leading_shape(const Shape& shape) {
  if (shape.rank <= 1) return Shape{1};
  Shape leading = shape;
  --leading.rank;
  leading[leading.rank] = 0;
  return leading;
}

}  // namespace flashmha::ops
