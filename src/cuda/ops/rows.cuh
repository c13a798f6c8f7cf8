// Reading, writing and reducing rows on the device. Types are run-time values: the branch is the
// same for all threads, and what these kernels wait for is memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/ops/call.h"
#include "cuda/ops/rows.h"

namespace flashmha::cuda::ops {

// quotient and remainder of i >= 0 by n > 0; 64-bit divisions are slow.
struct Division {
  std::int64_t quotient, remainder;
};
__device__ __forceinline__ Division divide(std::int64_t i, std::int64_t n) {
  if (((i | n) >> 32) == 0) {
    const auto a = static_cast<std::uint32_t>(i);
    const auto b = static_cast<std::uint32_t>(n);
    const std::uint32_t quotient = a / b;
    return {quotient, a - quotient * b};
  }
  return {i / n, i % n};
}

// Where row r begins, in elements.
__device__ __forceinline__ std::int64_t row_offset(const TensorRows& rows, std::int64_t r) {
  if (rows.evenly_spaced) return r * rows.row_stride;
  std::int64_t offset = 0;
  for (int dim = rows.num_outer - 1; dim > 0; --dim) {
    const Division division = divide(r, rows.sizes[dim]);
    offset += division.remainder * rows.strides[dim];
    r = division.quotient;
  }
  return offset + r * rows.strides[0];
}

__device__ __forceinline__ float load_one(const void* data, DType dtype, std::int64_t at) {
  switch (dtype) {
    case DType::float32: return static_cast<const float*>(data)[at];
    case DType::bfloat16: return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
    default: return __half2float(static_cast<const __half*>(data)[at]);
  }
}

__device__ __forceinline__ void store_one(void* data, DType dtype, std::int64_t at, float value) {
  switch (dtype) {
    case DType::float32: static_cast<float*>(data)[at] = value; break;
    case DType::bfloat16: static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16_rn(value); break;
    default: static_cast<__half*>(data)[at] = __float2half_rn(value);
  }
}

// Two elements of 16 bits, rounded; the first one in the lower half.
__device__ __forceinline__ unsigned narrow_pair(DType dtype, float low, float high) {
  if (dtype == DType::bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const unsigned&>(pair);
  }
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const unsigned&>(pair);
}

// Four elements of 16 bits, at a multiple of four.
__device__ __forceinline__ void store_narrow_four(void* data, DType dtype, std::int64_t at,
                                                  const float4& x) {
  *reinterpret_cast<uint2*>(static_cast<std::uint16_t*>(data) + at) =
      make_uint2(narrow_pair(dtype, x.x, x.y), narrow_pair(dtype, x.z, x.w));
}

// Elements [j, j + kVector) of the row that begins at `row`; beyond its end 0. j % kVector == 0.
__device__ __forceinline__ void load(const TensorRows& rows, std::int64_t row, std::int64_t j,
                                     float (&x)[kVector]) {
  const std::int64_t left = rows.length - j;
  if (!rows.aligned || left < kVector) {
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      x[i] = i < left ? load_one(rows.data, rows.dtype, row + (j + i) * rows.step) : 0.0f;
  } else if (rows.dtype == DType::float32) {
    const auto* from = reinterpret_cast<const float4*>(static_cast<float*>(rows.data) + row + j);
    const float4 low = from[0];
    const float4 high = from[1];
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  } else {
    const uint4 bits =
        *reinterpret_cast<const uint4*>(static_cast<std::uint16_t*>(rows.data) + row + j);
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
    const bool brain = rows.dtype == DType::bfloat16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair =
          brain ? __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(words[i]))
                : __half22float2(reinterpret_cast<const __half2&>(words[i]));
      x[2 * i] = pair.x;
      x[2 * i + 1] = pair.y;
    }
  }
}

__device__ __forceinline__ void store(const TensorRows& rows, std::int64_t row, std::int64_t j,
                                      const float (&x)[kVector]) {
  const std::int64_t left = rows.length - j;
  if (!rows.aligned || left < kVector) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < left) store_one(rows.data, rows.dtype, row + (j + i) * rows.step, x[i]);
    }
  } else if (rows.dtype == DType::float32) {
    auto* to = reinterpret_cast<float4*>(static_cast<float*>(rows.data) + row + j);
    to[0] = make_float4(x[0], x[1], x[2], x[3]);
    to[1] = make_float4(x[4], x[5], x[6], x[7]);
  } else {
    *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(rows.data) + row + j) =
        make_uint4(narrow_pair(rows.dtype, x[0], x[1]), narrow_pair(rows.dtype, x[2], x[3]),
                   narrow_pair(rows.dtype, x[4], x[5]), narrow_pair(rows.dtype, x[6], x[7]));
  }
}

// ---- kernels with a team of threads for every row ----------------------------------------------

// Short rows get a warp each, several in a block; long rows a block. Chosen by the length alone,
// so that the order of a row's sums is a matter of its length.
constexpr std::int64_t kLongestWarpRow = 1024;
constexpr int kWarp = 32;
constexpr int kBlock = 256;

template <int kTeam>
inline constexpr int kTeamsPerBlock = kTeam == kWarp ? 4 : 1;

// The row and the place of a thread in its team.
template <int kTeam>
struct Place {
  std::int64_t row = std::int64_t{blockIdx.x} * kTeamsPerBlock<kTeam> + threadIdx.x / kTeam;
  int lane = static_cast<int>(threadIdx.x % kTeam);
};

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int distance) {
  static_assert(sizeof(T) % 4 == 0);
  union {
    T value;
    unsigned words[sizeof(T) / 4];
  } bits{value};
#pragma unroll
  for (unsigned& word : bits.words)
    word = __shfl_xor_sync(0xFFFFFFFFu, word, distance);
  return bits.value;
}

// One team for each row: the kernel for warps or the one for blocks.
template <class... Params>
void launch_rows(const Call& call, const TensorRows& rows, void (*by_warp)(Params...),
                 void (*by_block)(Params...), const std::type_identity_t<Params>&... args) {
  if (rows.length <= kLongestWarpRow) {
    constexpr int kTeams = kTeamsPerBlock<kWarp>;
    call.launch(by_warp, (rows.count + kTeams - 1) / kTeams, kWarp * kTeams, args...);
  } else {
    call.launch(by_block, rows.count, kBlock, args...);
  }
}

// The values of a team combined, for all of its threads. `combine` must be commutative to the bit.
template <int kTeam, class T, class Combine>
__device__ __forceinline__ T reduce(T value, Combine combine) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = combine(value, shuffle_xor(value, distance));
  if constexpr (kTeam > kWarp) {
    __shared__ T parts[kTeam / kWarp];
    __syncthreads();  // an earlier reduction may still be read
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = parts[0];
#pragma unroll
    for (int warp = 1; warp < kTeam / kWarp; ++warp)
      value = combine(value, parts[warp]);
  }
  return value;
}

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// Softmax's two sums in one pass: the largest element, and the sum of exp(x - largest).
struct Denominator {
  float largest = -INFINITY;
  float sum = 0.0f;

  __device__ void add(float x) {
    if (x > largest) {
      sum = sum * expf(largest - x) + 1.0f;
      largest = x;
    } else if (x != -INFINITY) {
      sum += expf(x - largest);  // also NaN
    }
  }
};

struct MergeDenominators {
  __device__ Denominator operator()(Denominator a, Denominator b) const {
    const float largest = fmaxf(a.largest, b.largest);
    Denominator result{largest, a.sum + b.sum};
    if (a.largest != b.largest) {
      const float of_a = a.sum * (a.largest == largest ? 1.0f : expf(a.largest - largest));
      const float of_b = b.sum * (b.largest == largest ? 1.0f : expf(b.largest - largest));
      result.sum = of_a + of_b;
    }
    return result;
  }
};

}  // namespace flashmha::cuda::ops
