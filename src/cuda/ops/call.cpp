#include "cuda/ops/call.h"

#include "cuda/error.h"
#include "cuda/launch.h"

namespace flashmha::cuda::ops {
Call::Call(const char* function, Device device, Stream stream)
    : function_(function), device_(device), stream_(stream_of(stream)) {
  check(cudaGetDevice(&previous_device_));
  if (previous_device_ != device.index) check(cudaSetDevice(device.index));
}

Call::~Call() {
  if (previous_device_ != device_.index) cudaSetDevice(previous_device_);
}

void Call::check(cudaError_t error) const {
  check_cuda(error, function_, device_);
}

void Call::check_launch(cudaError_t error, std::int64_t blocks, int threads) const {
  if (error == cudaSuccess) error = wait_if_asked(stream_);
  if (error == cudaSuccess) [[likely]]
    return;
  cudaGetLastError();
  fail(ErrorCode::device, "[{}] a launch of {} blocks of {} threads on {} failed: {}", function_,
       blocks, threads, device_name(device_), cudaGetErrorString(error));
}

Tensor Call::scratch(std::size_t bytes) const {
  return Tensor::empty({static_cast<std::int64_t>(bytes)}, DType::boolean, device_, {stream_});
}

}  // namespace flashmha::cuda::ops
