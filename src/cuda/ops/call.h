// One operation on its device and its stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "flashmha/tensor.h"

namespace flashmha::cuda::ops {

class Call {
 public:
  // Makes the device current while it lives.
  Call(const char* function, Device device, Stream stream);
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call();

  cudaStream_t stream() const { return stream_; }
  Device device() const { return device_; }

  // Memory for partial sums, in the order of the stream.
  Tensor scratch(std::size_t bytes) const;

  // Throws Error(device) with what failed.
  void check(cudaError_t error) const;

  // No blocks: nothing happens.
  template <class... Params>
  void launch(void (*kernel)(Params...), std::int64_t blocks, int threads,
              std::type_identity_t<Params>... args) const {
    launch_with_shared(kernel, blocks, threads, 0, args...);
  }
  template <class... Params>
  void launch_with_shared(void (*kernel)(Params...), std::int64_t blocks, int threads,
                          std::size_t shared_bytes, std::type_identity_t<Params>... args) const {
    if (blocks == 0) return;
    void* pointers[] = {&args...};
    check_launch(
        cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), pointers, shared_bytes, stream_),
        blocks, threads);
  }

 private:
  void check_launch(cudaError_t error, std::int64_t blocks, int threads) const;

  const char* function_;
  Device device_;
  cudaStream_t stream_;
  int previous_device_ = 0;
};

}  // namespace flashmha::cuda::ops
