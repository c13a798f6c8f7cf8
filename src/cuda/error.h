// Errors of the CUDA runtime, and the current device.
#pragma once

#include <cuda_runtime_api.h>

#include "core/check.h"
#include "flashmha/device.h"

namespace flashmha::cuda {

inline constexpr int kMaxDevices = 64;

// Throws Error(device) with what was being done and the runtime's words, unless `error` is success.
void check_cuda(cudaError_t error, const char* function, Device device);

// Makes a device the current one while it lives.
class CurrentDevice {
 public:
  // Throws Error(device) if there is no such device.
  CurrentDevice(Device device, const char* function);
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice();

 private:
  int device_;
  int previous_ = 0;
};

inline cudaStream_t stream_of(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle ? stream.handle : current_stream().handle);
}

// Throws invalid_argument if the stream is being recorded: a graph cannot wait for what it does.
void require_not_recorded(const char* function, cudaStream_t stream);

// 80 for compute capability 8.0; 0 if there is no such device.
int compute_capability(Device device);

// Shared memory that a block of threads may ask for; 0 if there is no such device.
int most_shared_bytes(Device device);

}  // namespace flashmha::cuda
