#include "array.h"

#include <cstdint>
#include <optional>
#include <string>

#include "dlpack_exchange.h"

namespace nb = nanobind;

namespace flashmha::python {
namespace {

// DLPack 0.8 added this code; older headers lack the name.
constexpr std::uint8_t kDLPackBool = 6;

std::optional<DType> dtype_from(std::uint8_t code, std::uint8_t bits, std::uint16_t lanes) {
  if (lanes != 1) return std::nullopt;
  if (code == kDLFloat && bits == 32) return DType::float32;
  if (code == kDLBfloat && bits == 16) return DType::bfloat16;
  if (code == kDLFloat && bits == 16) return DType::float16;
  if (code == kDLFloat && bits == 64) return DType::float64;
  if (code == kDLInt && bits == 32) return DType::int32;
  if (code == kDLInt && bits == 64) return DType::int64;
  if (code == kDLPackBool && bits == 8) return DType::boolean;
  return std::nullopt;
}

std::optional<DeviceType> device_from(int type) {
  constexpr int kManaged = 13;  // kDLCUDAManaged
  if (type == kDLCPU || type == kDLCUDAHost) return DeviceType::cpu;
  if (type == kDLCUDA || type == kManaged) return DeviceType::cuda;
  return std::nullopt;
}

// The exchange table of an object's type, or null. Types are few and live on: the last one is
// remembered (under the GIL).
const DLPackExchange* exchange_of(nb::handle object) {
  static PyObject* last_type = nullptr;
  static const DLPackExchange* last_exchange = nullptr;
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  if (type == last_type) return last_exchange;
  const DLPackExchange* exchange = nullptr;
  PyObject* capsule = PyObject_GetAttrString(type, kExchangeAttribute);
  if (capsule != nullptr && PyCapsule_IsValid(capsule, kExchangeCapsule) != 0) {
    exchange = static_cast<const DLPackExchange*>(PyCapsule_GetPointer(capsule, kExchangeCapsule));
    if (exchange->version.major != 1 || exchange->tensor_from_object == nullptr) exchange = nullptr;
  }
  Py_XDECREF(capsule);
  PyErr_Clear();
  Py_INCREF(type);  // stays a different type than any later one
  Py_XDECREF(last_type);
  last_type = type;
  last_exchange = exchange;
  return exchange;
}

std::string name_of_type(nb::handle object) {
  return nb::str(nb::handle(object.type()).attr("__name__")).c_str();
}

}  // namespace

void CallArrays::refuse(nb::handle object, const char* what, std::string_view why) const {
  const std::string message = "[" + std::string(function_) + "] " + what + " " + std::string(why) +
                              "; got " + name_of_type(object);
  throw nb::type_error(message.c_str());
}

TensorView CallArrays::read(nb::handle object, const char* what) {
  return view(object, what, false);
}

TensorView CallArrays::write(nb::handle object, const char* what) {
  return view(object, what, true);
}

TensorView CallArrays::view(nb::handle object, const char* what, bool writable) {
  if (object.is_none()) return {};
  const DLPackExchange* exchange = exchange_of(object);
  if (exchange == nullptr) return from_protocol(object, what, writable);
  DLTensor tensor;
  if (exchange->tensor_from_object(object.ptr(), &tensor) != 0) throw nb::python_error();
  const auto dtype = dtype_from(tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes);
  const auto device = device_from(tensor.device.device_type);
  if (!dtype) refuse(object, what, "has an element type that FlashMHA does not know");
  if (!device) refuse(object, what, "must be on a CPU or an NVIDIA GPU");
  if (tensor.ndim < 1) refuse(object, what, "needs at least one dimension");
  const auto rank = static_cast<std::size_t>(tensor.ndim);
  TensorView result{static_cast<std::byte*>(tensor.data) + tensor.byte_offset, *dtype,
                    Device{*device, *device == DeviceType::cpu ? 0 : tensor.device.device_id},
                    Shape(std::span<const std::int64_t>(tensor.shape, rank)), Shape{}};
  result.strides = tensor.strides == nullptr
                       ? contiguous_strides(result.shape)
                       : Shape(std::span<const std::int64_t>(tensor.strides, rank));
  if (*device == DeviceType::cuda && !knows_stream_) {
    knows_stream_ = true;
    if (exchange->current_stream(tensor.device.device_type, tensor.device.device_id,
                                 &stream_.handle) != 0) {
      throw nb::python_error();
    }
  }
  return result;
}

TensorView CallArrays::from_protocol(nb::handle given, const char* what, bool writable) {
  // Older PyTorch does not export what wants a gradient; who computes that asks in its own way.
  nb::object object = nb::borrow(given);
  if (nb::hasattr(object, "requires_grad") && nb::cast<bool>(object.attr("requires_grad"))) {
    object = object.attr("detach")();
  }
  nb::ndarray<> array;
  if (writable) {
    if (!nb::try_cast(object, array, false)) {
      refuse(object, what, "must be an array that can be written (DLPack or buffer protocol)");
    }
  } else {
    nb::ndarray<nb::ro> read_only;
    if (!nb::try_cast(object, read_only, false)) {
      refuse(object, what,
             "must be an array of NumPy, PyTorch, JAX, CuPy or any other library with DLPack");
    }
    array = nb::ndarray<>(read_only);
  }
  const auto type = array.dtype();
  const auto dtype = dtype_from(type.code, type.bits, type.lanes);
  const auto device = device_from(array.device_type());
  if (!dtype) refuse(object, what, "has an element type that FlashMHA does not know");
  if (!device) refuse(object, what, "must be on a CPU or an NVIDIA GPU");
  if (array.ndim() < 1) refuse(object, what, "needs at least one dimension");
  TensorView result{const_cast<void*>(static_cast<const void*>(array.data())), *dtype,
                    Device{*device, *device == DeviceType::cpu ? 0 : array.device_id()},
                    Shape(std::span<const std::int64_t>(array.shape_ptr(), array.ndim())),
                    Shape(std::span<const std::int64_t>(array.stride_ptr(), array.ndim()))};
  if (*device == DeviceType::cuda && !knows_stream_) {
    knows_stream_ = true;
    const nb::object stream =
        nb::module_::import_("flashmha.arrays").attr("current_stream")(object);
    stream_.handle = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(stream));
  }
  owned_[num_owned_++] = std::move(array);
  return result;
}

}  // namespace flashmha::python
