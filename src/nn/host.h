// Small integer tensors that the host reads: masks, lengths, positions.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "core/format.h"
#include "core/located.h"
#include "flashmha/tensor.h"

namespace flashmha {

// A boolean or integer tensor of rank 2 as numbers, row by row; one of a GPU is waited for.
// `function` and `name` are for the message if it is something else.
inline std::vector<std::int64_t> host_matrix(std::string_view function, std::string_view name,
                                             const TensorView& given) {
  const Located located(given);
  const TensorView& view = located;
  check(view.rank() == 2, "[{}] {} must be [batch,seqlen]; got {}", function, name, view);
  check(view.dtype == DType::boolean || view.dtype == DType::int32 || view.dtype == DType::int64,
        "[{}] {} must be boolean, int32 or int64; got {}", function, name, view);
  std::vector<std::int64_t> values;
  values.reserve(static_cast<std::size_t>(view.numel()));
  for (std::int64_t i = 0; i < view.size(0); ++i) {
    for (std::int64_t j = 0; j < view.size(1); ++j) {
      const std::int64_t offset = i * view.strides[0] + j * view.strides[1];
      switch (view.dtype) {
        case DType::boolean: values.push_back(view.as<bool>()[offset]); break;
        case DType::int32: values.push_back(view.as<std::int32_t>()[offset]); break;
        default: values.push_back(view.as<std::int64_t>()[offset]);
      }
    }
  }
  return values;
}

inline Tensor int32_tensor(const std::vector<std::int32_t>& values) {
  return Tensor::from(std::span<const std::int32_t>(values),
                      {static_cast<std::int64_t>(values.size())});
}

// The same elements with another shape.
inline Tensor reshaped(Tensor tensor, const Shape& shape) {
  const TensorView view = tensor.view().reshape(shape);
  return Tensor::adopt(view, std::make_shared<Tensor>(std::move(tensor)));
}

}  // namespace flashmha
