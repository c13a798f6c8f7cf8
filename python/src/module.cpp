// flashmha._native: the C++ library for Python. Errors of the library become the classes of
// flashmha/errors.py; long calls run without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

#include "bindings.h"
#include "flashmha/device.h"
#include "flashmha/error.h"
#include "flashmha/version.h"

namespace nb = nanobind;

namespace flashmha::python {
namespace {

const char* class_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument: return "InvalidArgument";
    case ErrorCode::unsupported: return "Unsupported";
    case ErrorCode::out_of_memory: return "OutOfMemory";
    case ErrorCode::device: return "DeviceError";
    case ErrorCode::io: return "FileError";
  }
  return "Error";
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    const nb::object type = nb::module_::import_("flashmha.errors").attr(class_of(error.code()));
    PyErr_SetString(type.ptr(), error.what());
  }
}

}  // namespace

NB_MODULE(_native, module) {
  nb::register_exception_translator(translate);
  module.attr("__version__") = nb::str(kVersion.data(), kVersion.size());
  module.def("num_threads", &num_threads, "Threads that CPU kernels use.");
  module.def("set_num_threads", &set_num_threads, nb::arg("count"),
             "Sets the threads of CPU kernels; 0 restores the default.");
  module.def(
      "num_gpus", [] { return num_devices(DeviceType::cuda); },
      "GPUs that can be used; 0 in a build without CUDA.");
  module.def(
      "synchronize",
      [](const std::string& device) {
        const nb::gil_scoped_release released;
        synchronize(parse_device(device));
      },
      nb::arg("device"), "Waits for the default stream of a GPU; returns at once for \"cpu\".");
  bind_attention(module);
  bind_ops(module);
  bind_jax(module);
  bind_text(module);
  bind_model(module);
  bind_generation(module);
  bind_training(module);
}

}  // namespace flashmha::python
