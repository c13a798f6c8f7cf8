#include "flashmha/dlpack.h"

#include <dlpack/dlpack.h>

#include <array>
#include <optional>

#include "core/check.h"

namespace flashmha {
namespace {

// DLPack 0.8 added this code; older headers lack the name.
constexpr std::uint8_t kDLPackBool = 6;

DLDataType to_dl(DType dtype) {
  const auto bits = static_cast<std::uint8_t>(dtype_bytes(dtype) * 8);
  switch (dtype) {
    case DType::bfloat16: return {kDLBfloat, bits, 1};
    case DType::float32:
    case DType::float16:
    case DType::float64: return {kDLFloat, bits, 1};
    case DType::int32:
    case DType::int64: return {kDLInt, bits, 1};
    case DType::boolean: return {kDLPackBool, bits, 1};
  }
  return {};
}

std::optional<DType> from_dl(DLDataType type) {
  constexpr std::array kAll = {DType::float32, DType::bfloat16, DType::float16, DType::float64,
                               DType::int32,   DType::int64,    DType::boolean};
  for (const DType dtype : kAll) {
    const DLDataType candidate = to_dl(dtype);
    if (candidate.code == type.code && candidate.bits == type.bits && type.lanes == 1) {
      return dtype;
    }
  }
  return std::nullopt;
}

// What a DLManagedTensor of ours points back to.
struct Export {
  Tensor tensor;
  DLManagedTensor managed{};
};

}  // namespace

Tensor from_dlpack(DLManagedTensor* source) {
  check(source != nullptr, "[from_dlpack] needs a tensor; got a null pointer");
  const DLTensor& tensor = source->dl_tensor;
  check(tensor.device.device_type == kDLCPU || tensor.device.device_type == kDLCUDA,
        "[from_dlpack] device type must be CPU (1) or CUDA (2); got {}",
        static_cast<int>(tensor.device.device_type));
  const std::optional<DType> dtype = from_dl(tensor.dtype);
  check(dtype.has_value(), "[from_dlpack] unknown element type: code {}, {} bits, {} lanes",
        tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes);
  check(tensor.ndim >= 1, "[from_dlpack] needs at least one dimension; got {}", tensor.ndim);

  TensorView view;
  view.data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  view.dtype = *dtype;
  view.device = {tensor.device.device_type == kDLCPU ? DeviceType::cpu : DeviceType::cuda,
                 tensor.device.device_id};
  const auto rank = static_cast<std::size_t>(tensor.ndim);
  view.shape = Shape(std::span<const std::int64_t>(tensor.shape, rank));
  view.strides = tensor.strides == nullptr
                     ? contiguous_strides(view.shape)
                     : Shape(std::span<const std::int64_t>(tensor.strides, rank));
  return Tensor::adopt(view, {source, [](DLManagedTensor* managed) {
                                if (managed->deleter != nullptr) managed->deleter(managed);
                              }});
}

DLManagedTensor* to_dlpack(Tensor tensor) {
  check(tensor.defined(), "[to_dlpack] needs a tensor; got none");
  auto owned = std::make_unique<Export>();
  owned->tensor = std::move(tensor);
  // The view inside the exported tensor outlives the DLTensor, so its sizes can be pointed at.
  TensorView& view = const_cast<TensorView&>(owned->tensor.view());
  DLTensor& out = owned->managed.dl_tensor;
  out.data = view.data;
  out.device = {view.device.type == DeviceType::cpu ? kDLCPU : kDLCUDA, view.device.index};
  out.ndim = view.rank();
  out.dtype = to_dl(view.dtype);
  out.shape = view.shape.sizes.data();
  out.strides = view.strides.sizes.data();
  owned->managed.manager_ctx = owned.get();
  owned->managed.deleter = [](DLManagedTensor* managed) {
    delete static_cast<Export*>(managed->manager_ctx);
  };
  return &owned.release()->managed;
}

}  // namespace flashmha
