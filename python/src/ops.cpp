#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "array.h"
#include "bindings.h"
#include "flashmha/ops.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): "x"_a

namespace flashmha::python {
namespace {

void rotary(nb::handle x, nb::handle cos, nb::handle sin, nb::handle positions, nb::handle y,
            bool interleaved, bool conjugate) {
  CallArrays arrays("apply_rotary");
  const TensorView from = arrays.read(x, "x");
  const ops::RotaryTables tables{arrays.read(cos, "cos"), arrays.read(sin, "sin"), interleaved};
  const TensorView rows = arrays.read(positions, "positions");
  const TensorView to = arrays.write(y, "y");
  const nb::gil_scoped_release released;
  const auto apply = conjugate ? &ops::rotary_backward : &ops::rotary;
  apply(from, tables, rows, to, arrays.stream());
}

nb::dlpack::dtype dlpack_type(const std::string& dtype) {
  if (dtype == "float32") return nb::dtype<float>();
  if (dtype == "float64") return nb::dtype<double>();
  constexpr std::uint8_t kBits = 16;
  if (dtype == "bfloat16") {
    return {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat), kBits, 1};
  }
  if (dtype == "float16") {
    return {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), kBits, 1};
  }
  throw nb::value_error("[empty] dtype must be float32, bfloat16, float16 or float64");
}

// Memory for results of libraries whose own arrays cannot be written.
nb::ndarray<nb::array_api> empty(const std::vector<std::size_t>& shape, const std::string& dtype) {
  const nb::dlpack::dtype type = dlpack_type(dtype);
  std::size_t bytes = type.bits / 8;
  for (const std::size_t size : shape)
    bytes *= size;
  auto tensor = std::make_unique<Tensor>(
      Tensor::empty({static_cast<std::int64_t>(std::max<std::size_t>(bytes, 1))}, DType::boolean));
  void* data = tensor->view().data;
  const nb::capsule owner(tensor.release(),
                          [](void* pointer) noexcept { delete static_cast<Tensor*>(pointer); });
  return {data, shape.size(), shape.data(), owner, nullptr, type};
}

}  // namespace

void bind_ops(nb::module_& module) {
  module.def("empty", &empty, "shape"_a, "dtype"_a,
             "An array on the CPU with unspecified contents, for any library with DLPack.");
  module.def("rotary", &rotary, "x"_a, "cos"_a, "sin"_a, "positions"_a, "y"_a,
             "interleaved"_a = false, "conjugate"_a = false,
             "rotary of flashmha/ops.h (conjugate: its gradient). y may be x.");
}

}  // namespace flashmha::python
