#include "results.h"

#include <array>
#include <memory>
#include <utility>

namespace nb = nanobind;

namespace flashmha::python {
namespace {

nb::dlpack::dtype dlpack_type(DType dtype) {
  using Code = nb::dlpack::dtype_code;
  const auto type = [](Code code, int bits) {
    return nb::dlpack::dtype{static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1};
  };
  switch (dtype) {
    case DType::float32: return type(Code::Float, 32);
    case DType::float64: return type(Code::Float, 64);
    case DType::float16: return type(Code::Float, 16);
    case DType::bfloat16: return type(Code::Bfloat, 16);
    case DType::int32: return type(Code::Int, 32);
    case DType::int64: return type(Code::Int, 64);
    case DType::boolean: break;
  }
  return type(Code::Bool, 8);
}

}  // namespace

Array array_of(const TensorView& view, nb::handle owner) {
  std::array<std::size_t, Shape::kMaxRank> shape{};
  for (int dim = 0; dim < view.rank(); ++dim)
    shape[static_cast<std::size_t>(dim)] = static_cast<std::size_t>(view.shape[dim]);
  const bool cpu = view.device.type == DeviceType::cpu;
  return {view.data,
          static_cast<std::size_t>(view.rank()),
          shape.data(),
          owner,
          view.strides.begin(),
          dlpack_type(view.dtype),
          cpu ? nb::device::cpu::value : nb::device::cuda::value,
          view.device.index};
}

Array array_of(Tensor tensor) {
  auto owned = std::make_unique<Tensor>(std::move(tensor));
  const TensorView view = owned->view();
  const nb::capsule owner(owned.release(),
                          [](void* pointer) noexcept { delete static_cast<Tensor*>(pointer); });
  return array_of(view, owner);
}

Tensor for_numpy(Tensor tensor) {
  if (tensor.dtype() == DType::bfloat16) tensor = cast(tensor, DType::float32);
  if (tensor.device().type == DeviceType::cpu) return tensor;
  Tensor host = Tensor::empty(tensor.shape(), tensor.dtype());
  copy(tensor, host);
  return host;
}

}  // namespace flashmha::python
