// A call on host tensors, moved to a GPU and back.
#pragma once

#include <vector>

#include "flashmha/plan.h"

namespace flashmha::tests {

// The same call on a device. Every tensor is copied with the memory between its elements: strides,
// alignment and poison arrive as they are.
class DeviceCall {
 public:
  // `original` must outlive this object.
  DeviceCall(const AttentionCall& original, Device device);

  const AttentionCall& call() const { return call_; }

  // Copies every tensor back, inputs too, so that whoever looks at the original sees what the
  // kernel did.
  void download();

 private:
  struct Copy {
    TensorView host;  // the tensor's memory, as bytes
    Tensor device;
    TensorView window;  // of `device`
  };
  TensorView upload(const TensorView& tensor, Device device);

  AttentionCall call_;
  std::vector<Copy> copies_;
};

}  // namespace flashmha::tests
