#include <nanobind/nanobind.h>

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

}  // namespace

void bind_ops(nb::module_& module) {
  module.def("rotary", &rotary, "x"_a, "cos"_a, "sin"_a, "positions"_a, "y"_a,
             "interleaved"_a = false, "conjugate"_a = false,
             "rotary of flashmha/ops.h (conjugate: its gradient). y may be x.");
}

}  // namespace flashmha::python
