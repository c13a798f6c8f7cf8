#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "array.h"
#include "bindings.h"
#include "flashmha/ops.h"
#include "results.h"

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

DType parse_dtype(const std::string& name) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::float64}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw nb::value_error("[empty] dtype must be float32, bfloat16, float16 or float64");
}

// Memory for results of libraries whose own arrays cannot be written.
Array empty(const std::vector<std::int64_t>& shape, const std::string& dtype,
            const std::string& device) {
  return array_of(Tensor::empty(Shape(shape), parse_dtype(dtype), parse_device(device)));
}

}  // namespace

void bind_ops(nb::module_& module) {
  module.def("empty", &empty, "shape"_a, "dtype"_a, "device"_a = "cpu",
             "An array with unspecified contents, for any library with DLPack.");
  module.def("rotary", &rotary, "x"_a, "cos"_a, "sin"_a, "positions"_a, "y"_a,
             "interleaved"_a = false, "conjugate"_a = false,
             "rotary of flashmha/ops.h (conjugate: its gradient). y may be x.");
}

}  // namespace flashmha::python
