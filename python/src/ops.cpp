#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "array.h"
#include "bindings.h"
#include "flashmha/ops.h"
#include "flashmha/rotary.h"
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

nn::RotaryScaling parse_scaling(const std::string& name) {
  using enum nn::RotaryScaling;
  if (name == "default") return none;
  if (name == "linear") return linear;
  if (name == "dynamic") return dynamic_ntk;
  if (name == "yarn") return yarn;
  if (name == "llama3") return llama3;
  throw nb::value_error(
      "[rotary_tables] rope_type must be default, linear, dynamic, yarn or llama3");
}

// Members of RotaryConfig by the names that Transformers gives them.
nn::RotaryConfig read_rotary(const nb::dict& given) {
  nn::RotaryConfig config;
  std::size_t num_known = 0;
  const auto read = [&](const char* name, auto& value) {
    if (!given.contains(name)) return;
    ++num_known;
    const nb::object object = given[name];
    if (!object.is_none()) value = nb::cast<std::decay_t<decltype(value)>>(object);
  };
  std::string type = "default";
  read("type", type);
  read("rope_type", type);
  config.scaling = parse_scaling(type);
  read("head_dim", config.head_dim);
  read("partial_rotary_factor", config.partial_rotary_factor);
  read("rope_theta", config.rope_theta);
  read("max_position_embeddings", config.max_position_embeddings);
  read("original_max_position_embeddings", config.original_max_position_embeddings);
  read("factor", config.factor);
  read("attention_factor", config.attention_factor);
  read("beta_fast", config.beta_fast);
  read("beta_slow", config.beta_slow);
  read("mscale", config.mscale);
  read("mscale_all_dim", config.mscale_all_dim);
  read("truncate", config.truncate);
  read("low_freq_factor", config.low_freq_factor);
  read("high_freq_factor", config.high_freq_factor);
  if (num_known != given.size()) throw nb::value_error("[rotary_tables] a parameter is not known");
  return config;
}

nb::tuple rotary_tables(const nb::dict& parameters, std::int64_t num_positions) {
  nn::RotaryEmbedding embedding(read_rotary(parameters));
  const ops::RotaryTables tables = embedding.tables(num_positions);
  return nb::make_tuple(array_of(clone(tables.cos)), array_of(clone(tables.sin)));
}

}  // namespace

void bind_ops(nb::module_& module) {
  module.def("empty", &empty, "shape"_a, "dtype"_a, "device"_a = "cpu",
             "An array with unspecified contents, for any library with DLPack.");
  module.def("rotary", &rotary, "x"_a, "cos"_a, "sin"_a, "positions"_a, "y"_a,
             "interleaved"_a = false, "conjugate"_a = false,
             "rotary of flashmha/ops.h (conjugate: its gradient). y may be x.");
  module.def("rotary_tables", &rotary_tables, "parameters"_a, "num_positions"_a,
             "(cos, sin) of RotaryEmbedding of flashmha/rotary.h, float32 [num_positions, "
             "rotary_dim / 2]; parameters: members of RotaryConfig as Transformers names them.");
}

}  // namespace flashmha::python
