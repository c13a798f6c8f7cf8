#include "tests/attention/device_call.h"

#include "tests/attention/instance.h"

namespace flashmha::tests {
namespace {

// Everything from the first to the last element, as one row of bytes.
TensorView memory_of(const TensorView& tensor) {
  std::int64_t elements = tensor.numel() > 0 ? 1 : 0;
  for (int dim = 0; dim < tensor.rank() && elements > 0; ++dim) {
    elements += (tensor.shape[dim] - 1) * tensor.strides[dim];
  }
  const auto bytes = elements * static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  return {tensor.data, DType::boolean, tensor.device, {bytes}, {1}};
}

}  // namespace

DeviceCall::DeviceCall(const AttentionCall& original, Device device) : call_(original) {
  for_each_tensor(call_,
                  [&](TensorView& tensor, bool /*is_output*/) { tensor = upload(tensor, device); });
}

TensorView DeviceCall::upload(const TensorView& tensor, Device device) {
  constexpr std::int64_t kAlignment = 64;
  const TensorView host = memory_of(tensor);
  const auto offset =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(tensor.data) % kAlignment);
  Tensor memory = Tensor::empty({offset + host.size(0) + kAlignment}, DType::boolean, device);
  const TensorView window = memory.view().slice(0, offset, offset + host.size(0));
  copy(host, window);
  TensorView result = tensor;
  result.data = window.data;
  result.device = device;
  copies_.push_back({host, std::move(memory), window});
  return result;
}

void DeviceCall::download() {
  for (const Copy& one : copies_)
    copy(one.window, one.host);
}

}  // namespace flashmha::tests
