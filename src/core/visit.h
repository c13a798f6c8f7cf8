// From a run-time DType to a C++ type: visit_dtype(view.dtype, [&]<class T>(T) { ... view.as<T>()
// }).
#pragma once

#include "core/check.h"
#include "flashmha/dtype.h"

namespace flashmha {

template <class Function>
decltype(auto) visit_dtype(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::float32: return function(float{});
    case DType::bfloat16: return function(BFloat16{});
    case DType::float16: return function(Float16{});
    case DType::float64: return function(double{});
    case DType::int32: return function(std::int32_t{});
    case DType::int64: return function(std::int64_t{});
    case DType::boolean: return function(bool{});
  }
  fail(ErrorCode::invalid_argument, "[visit_dtype] unknown dtype {}", static_cast<int>(dtype));
}

// The same for the floating types only; throws invalid_argument for others.
template <class Function>
decltype(auto) visit_floating(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::float32: return function(float{});
    case DType::bfloat16: return function(BFloat16{});
    case DType::float16: return function(Float16{});
    case DType::float64: return function(double{});
    default: break;
  }
  fail(ErrorCode::invalid_argument, "[visit_floating] {} is not a floating type",
       dtype_name(dtype));
}

}  // namespace flashmha
