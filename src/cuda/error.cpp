#include "cuda/error.h"

#include "core/cuda.h"

namespace flashmha {
namespace {

// The runtime's error is reported once and must not come back from the next call.
const char* explain(cudaError_t error) {
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace

int cuda_num_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

namespace cuda {

void check_cuda(cudaError_t error, const char* function, Device device) {
  if (error == cudaSuccess) [[likely]]
    return;
  fail(ErrorCode::device, "[{}] {} failed: {}", function, device_name(device), explain(error));
}

void require_not_recorded(const char* function, cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) != cudaSuccess) cudaGetLastError();
  check(
      status == cudaStreamCaptureStatusNone,
      "[{}] work that is recorded as a graph must not wait for the device, nor read its memory on "
      "the host",
      function);
}

CurrentDevice::CurrentDevice(Device device, const char* function) {
  const auto require = [&](cudaError_t error) {
    if (error == cudaSuccess) [[likely]]
      return;
    fail(ErrorCode::device, "[{}] {} is not available: {}; there are {} GPUs", function,
         device_name(device), explain(error), cuda_num_devices());
  };
  require(cudaGetDevice(&previous_));
  require(cudaSetDevice(device.index));
}

CurrentDevice::~CurrentDevice() {
  cudaSetDevice(previous_);
}

namespace {

int attribute_of(Device device, cudaDeviceAttr attribute) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device.index), "make_plan", device);
  return value;
}

}  // namespace

int compute_capability(Device device) {
  if (device.index >= cuda_num_devices()) return 0;
  return 10 * attribute_of(device, cudaDevAttrComputeCapabilityMajor) +
         attribute_of(device, cudaDevAttrComputeCapabilityMinor);
}

int most_shared_bytes(Device device) {
  if (device.index >= cuda_num_devices()) return 0;
  return attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

}  // namespace cuda
}  // namespace flashmha
