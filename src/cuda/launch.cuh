// The one way in which kernels are started.
#pragma once

#include <type_traits>

#include "cuda/launch.h"

namespace flashmha::cuda {

template <class... Parameters>
Launch start(const char* name, void (*kernel)(Parameters...), std::int64_t num_blocks,
             int num_threads, int shared_bytes, cudaStream_t stream,
             const std::type_identity_t<Parameters>&... arguments) {
  Launch launch{cudaSuccess, name, num_blocks, num_threads, shared_bytes};
  if (num_blocks == 0) return launch;
  constexpr int kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) {
    launch.error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (launch.error != cudaSuccess) return launch;
  }
  kernel<<<static_cast<unsigned>(num_blocks), static_cast<unsigned>(num_threads),
           static_cast<std::size_t>(shared_bytes), stream>>>(arguments...);
  launch.error = cudaGetLastError();
  return launch;
}

}  // namespace flashmha::cuda
