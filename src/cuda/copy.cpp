// copy() and fill() where a tensor is on a GPU. Between a GPU and the host only contiguous bytes
// travel; strides and conversions are the business of the side that has them.
#include "core/cuda.h"
#include "core/format.h"
#include "cuda/algo/elementwise.h"
#include "cuda/error.h"

namespace flashmha {
namespace {

constexpr const char* kCopy = "copy";

bool on_gpu(const TensorView& view) {
  return view.device.type == DeviceType::cuda;
}

void copy_bytes(const TensorView& source, const TensorView& destination, cudaMemcpyKind kind,
                Device device, Stream stream) {
  cuda::check_cuda(cudaMemcpyAsync(destination.data, source.data, destination.bytes(), kind,
                                   cuda::stream_of(stream)),
                   kCopy, device);
}

void copy_on_device(const TensorView& source, const TensorView& destination, Stream stream) {
  check(source.device == destination.device,
        "[copy] copies between two GPUs go through the host; got {} and {}", source, destination);
  const bool same = source.dtype == destination.dtype;
  if (same && source.is_contiguous() && destination.is_contiguous()) {
    return copy_bytes(source, destination, cudaMemcpyDeviceToDevice, source.device, stream);
  }
  cuda::check_cuda(cuda::copy_elements(source, destination, cuda::stream_of(stream)), kCopy,
                   source.device);
}

// The host's memory may be gone after the return: what does not travel by value is waited for.
void upload(const TensorView& source, const TensorView& destination, Stream stream) {
  if (source.dtype != destination.dtype || !source.is_contiguous()) {
    return upload(cast(source, destination.dtype), destination, stream);
  }
  if (!destination.is_contiguous()) {
    const Tensor staging = Tensor::empty(source.shape, source.dtype, destination.device, stream);
    upload(source, staging, stream);
    return copy_on_device(staging, destination, stream);
  }
  const cudaStream_t queue = cuda::stream_of(stream);
  if (source.bytes() <= cuda::kMostBytesByValue) {
    return cuda::check_cuda(cuda::write_bytes(source.data, destination.data, source.bytes(), queue),
                            kCopy, destination.device);
  }
  cuda::require_not_recorded(kCopy, queue);
  copy_bytes(source, destination, cudaMemcpyHostToDevice, destination.device, stream);
  cuda_synchronize(destination.device, stream);
}

void download(const TensorView& source, const TensorView& destination, Stream stream) {
  if (!source.is_contiguous()) return download(clone(source, stream), destination, stream);
  if (source.dtype != destination.dtype || !destination.is_contiguous()) {
    const Tensor staging = Tensor::empty(source.shape, source.dtype);
    download(source, staging, stream);
    return copy(staging, destination);
  }
  cuda::require_not_recorded(kCopy, cuda::stream_of(stream));
  copy_bytes(source, destination, cudaMemcpyDeviceToHost, source.device, stream);
  cuda_synchronize(source.device, stream);
}

}  // namespace

void cuda_copy(const TensorView& source, const TensorView& destination, Stream stream) {
  const cuda::CurrentDevice current(on_gpu(source) ? source.device : destination.device, kCopy);
  if (source.numel() == 0) return;
  if (!on_gpu(source)) return upload(source, destination, stream);
  if (!on_gpu(destination)) return download(source, destination, stream);
  copy_on_device(source, destination, stream);
}

void cuda_fill(const TensorView& destination, double value, Stream stream) {
  const cuda::CurrentDevice current(destination.device, "fill");
  if (destination.numel() == 0) return;
  const cudaStream_t queue = cuda::stream_of(stream);
  const bool zero = value == 0.0 && destination.is_contiguous();
  cuda::check_cuda(zero ? cudaMemsetAsync(destination.data, 0, destination.bytes(), queue)
                        : cuda::fill_elements(destination, value, queue),
                   "fill", destination.device);
}

}  // namespace flashmha
