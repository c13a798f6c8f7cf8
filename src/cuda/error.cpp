#include "cuda/error.h"

#include <array>
#include <atomic>
#include <cstddef>

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

CurrentDevice::CurrentDevice(Device device, const char* function) : device_(device.index) {
  const auto require = [&](cudaError_t error) {
    if (error == cudaSuccess) [[likely]]
      return;
    fail(ErrorCode::device, "[{}] {} is not available: {}; there are {} GPUs", function,
         device_name(device), explain(error), cuda_num_devices());
  };
  require(cudaGetDevice(&previous_));
  if (previous_ != device_) require(cudaSetDevice(device_));
}

CurrentDevice::~CurrentDevice() {
  if (previous_ != device_) cudaSetDevice(previous_);
}

namespace {

int attribute_of(Device device, cudaDeviceAttr attribute) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device.index), "make_plan", device);
  return value;
}

// A property of a device, asked for once: every call of attention wants to know. 0: not known yet,
// or no such device.
class DeviceProperty {
 public:
  template <class Ask>
  int of(Device device, const Ask& ask) {
    if (device.index < 0 || device.index >= kMaxDevices) return 0;
    std::atomic<int>& known = values_[static_cast<std::size_t>(device.index)];
    int value = known.load(std::memory_order_relaxed);
    if (value != 0 || device.index >= cuda_num_devices()) return value;
    value = ask();
    known.store(value, std::memory_order_relaxed);
    return value;
  }

 private:
  std::array<std::atomic<int>, kMaxDevices> values_{};
};

}  // namespace

int compute_capability(Device device) {
  static DeviceProperty property;
  return property.of(device, [&] {
    return 10 * attribute_of(device, cudaDevAttrComputeCapabilityMajor) +
           attribute_of(device, cudaDevAttrComputeCapabilityMinor);
  });
}

int most_shared_bytes(Device device) {
  static DeviceProperty property;
  return property.of(device,
                     [&] { return attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin); });
}

}  // namespace cuda
}  // namespace flashmha
