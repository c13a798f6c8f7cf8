// One thread an element, in the row-major order of the destination: bytes bound, and only as fast
// as the strides allow. Types are run-time values: the branch is the same for all threads.
#include <algorithm>
#include <cstring>

#include "cuda/algo/elementwise.h"
#include "cuda/tile/mma.cuh"

namespace flashmha::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxBlocks = std::int64_t{1} << 20;

__device__ std::int64_t offset_of(const TensorView& view, std::int64_t index) {
  std::int64_t offset = 0;
  for (int dim = view.shape.rank - 1; dim > 0; --dim) {
    const std::int64_t size = view.shape.sizes[dim];
    offset += index % size * view.strides.sizes[dim];
    index /= size;
  }
  return offset + index * view.strides.sizes[0];
}

__device__ double load_floating(const void* data, DType dtype, std::int64_t at) {
  switch (dtype) {
    case DType::float64: return static_cast<const double*>(data)[at];
    case DType::float32: return static_cast<const float*>(data)[at];
    case DType::bfloat16: return widen(static_cast<const BFloat16*>(data)[at]);
    default: return widen(static_cast<const Float16*>(data)[at]);
  }
}

// Doubles become 16-bit numbers by way of float, as they do on the host.
__device__ void store_floating(void* data, DType dtype, std::int64_t at, double value) {
  const auto narrow = static_cast<float>(value);
  switch (dtype) {
    case DType::float64: static_cast<double*>(data)[at] = value; break;
    case DType::float32: static_cast<float*>(data)[at] = narrow; break;
    case DType::bfloat16:
      static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16_rn(narrow);
      break;
    default: static_cast<__half*>(data)[at] = __float2half_rn(narrow); break;
  }
}

__device__ std::int64_t load_integer(const void* data, DType dtype, std::int64_t at) {
  switch (dtype) {
    case DType::int64: return static_cast<const std::int64_t*>(data)[at];
    case DType::int32: return static_cast<const std::int32_t*>(data)[at];
    default: return static_cast<const std::uint8_t*>(data)[at];
  }
}

__device__ void store_integer(void* data, DType dtype, std::int64_t at, std::int64_t value) {
  switch (dtype) {
    case DType::int64: static_cast<std::int64_t*>(data)[at] = value; break;
    case DType::int32:
      static_cast<std::int32_t*>(data)[at] = static_cast<std::int32_t>(value);
      break;
    default: static_cast<std::uint8_t*>(data)[at] = value != 0; break;
  }
}

// The bits of an element of any type.
__device__ void copy_bits(const void* source, std::int64_t from, void* destination, std::int64_t to,
                          std::size_t bytes) {
  switch (bytes) {
    case 8:
      static_cast<std::uint64_t*>(destination)[to] =
          static_cast<const std::uint64_t*>(source)[from];
      break;
    case 4:
      static_cast<std::uint32_t*>(destination)[to] =
          static_cast<const std::uint32_t*>(source)[from];
      break;
    case 2:
      static_cast<std::uint16_t*>(destination)[to] =
          static_cast<const std::uint16_t*>(source)[from];
      break;
    default:
      static_cast<std::uint8_t*>(destination)[to] = static_cast<const std::uint8_t*>(source)[from];
  }
}

__global__ void __launch_bounds__(kThreads)
    copy_kernel(const TensorView source, const TensorView destination, std::int64_t count) {
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    const std::int64_t from = offset_of(source, i);
    const std::int64_t to = offset_of(destination, i);
    if (source.dtype == destination.dtype) {
      copy_bits(source.data, from, destination.data, to, dtype_bytes(source.dtype));
    } else if (is_floating(source.dtype)) {
      store_floating(destination.data, destination.dtype, to,
                     load_floating(source.data, source.dtype, from));
    } else {
      store_integer(destination.data, destination.dtype, to,
                    load_integer(source.data, source.dtype, from));
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    fill_kernel(const TensorView destination, double value, std::int64_t count) {
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    const std::int64_t to = offset_of(destination, i);
    if (is_floating(destination.dtype)) {
      store_floating(destination.data, destination.dtype, to, value);
    } else {
      // As on the host, where true is any value but 0.
      const bool boolean = destination.dtype == DType::boolean;
      store_integer(destination.data, destination.dtype, to,
                    boolean ? value != 0.0 : static_cast<std::int64_t>(value));
    }
  }
}

struct Bytes {
  std::uint8_t values[kMostBytesByValue];
};

__global__ void __launch_bounds__(kThreads)
    write_kernel(const __grid_constant__ Bytes bytes, std::uint8_t* destination, unsigned count) {
  for (unsigned i = threadIdx.x; i < count; i += kThreads)
    destination[i] = bytes.values[i];
}

unsigned num_blocks(std::int64_t count) {
  return static_cast<unsigned>(std::min((count + kThreads - 1) / kThreads, kMaxBlocks));
}

std::int64_t count_of(const TensorView& view) {
  std::int64_t count = 1;
  for (const std::int64_t size : view.shape)
    count *= size;
  return count;
}

}  // namespace

cudaError_t copy_elements(const TensorView& source, const TensorView& destination,
                          cudaStream_t stream) {
  const std::int64_t count = count_of(destination);
  copy_kernel<<<num_blocks(count), kThreads, 0, stream>>>(source, destination, count);
  return cudaGetLastError();
}

cudaError_t write_bytes(const void* source, void* destination, std::size_t bytes,
                        cudaStream_t stream) {
  Bytes values;
  std::memcpy(values.values, source, bytes);
  write_kernel<<<1, kThreads, 0, stream>>>(values, static_cast<std::uint8_t*>(destination),
                                           static_cast<unsigned>(bytes));
  return cudaGetLastError();
}

cudaError_t fill_elements(const TensorView& destination, double value, cudaStream_t stream) {
  const std::int64_t count = count_of(destination);
  fill_kernel<<<num_blocks(count), kThreads, 0, stream>>>(destination, value, count);
  return cudaGetLastError();
}

}  // namespace flashmha::cuda
