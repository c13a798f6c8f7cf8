// Tensors where they are needed.
#pragma once

#include "flashmha/tensor.h"

namespace flashmha {

// Contiguous copy on a device, which may be the same one.
inline Tensor to_device(const TensorView& source, Device device, Stream stream = {}) {
  Tensor result = Tensor::empty(source.shape, source.dtype, device, stream);
  copy(source, result, stream);
  return result;
}

// The elements of a view on a device: the view itself where it lies there already, else a copy.
class Located {
 public:
  explicit Located(const TensorView& source, Device device = {}, Stream stream = {})
      : view_(source) {
    if (!source.defined() || source.device == device) return;
    copy_ = to_device(source, device, stream);
    view_ = copy_;
  }

  explicit Located(Tensor&&, Device = {}, Stream = {}) = delete;  // would be gone

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }  // NOLINT: is that view
  template <class T>
  T* as() const {
    return view_.as<T>();
  }

 private:
  Tensor copy_;
  TensorView view_;
};

}  // namespace flashmha
