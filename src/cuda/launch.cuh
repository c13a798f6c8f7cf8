// The one way in which kernels are started.
#pragma once

#include <array>
#include <cstddef>
#include <type_traits>

#include "cuda/launch.h"

namespace flashmha::cuda {

template <class... Parameters>
Launch start(const char* name, void (*kernel)(Parameters...), std::int64_t num_blocks,
             int num_threads, int shared_bytes, cudaStream_t stream,
             const std::type_identity_t<Parameters>&... arguments) {
  Launch launch{cudaSuccess, name, num_blocks, num_threads, shared_bytes};
  if (num_blocks == 0) return launch;
  const void* function = reinterpret_cast<const void*>(kernel);
  constexpr int kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) {
    launch.error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (launch.error != cudaSuccess) return launch;
  }
  std::array<void*, sizeof...(Parameters)> addresses = {
      const_cast<void*>(static_cast<const void*>(&arguments))...};
  launch.error = cudaLaunchKernel(function, dim3(static_cast<unsigned>(num_blocks)),
                                  dim3(static_cast<unsigned>(num_threads)), addresses.data(),
                                  static_cast<std::size_t>(shared_bytes), stream);
  return launch;
}

}  // namespace flashmha::cuda
