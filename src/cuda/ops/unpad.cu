// Where the real tokens of a padded batch are: counted by a block for each row, then placed.
#include <algorithm>

#include "cuda/ops/call.h"
#include "cuda/ops/ops.h"
#include "cuda/ops/rows.cuh"

namespace flashmha::cuda::ops {
namespace {

struct Mask {
  const void* data = nullptr;
  DType dtype = DType::boolean;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;

  explicit Mask(const TensorView& view) {
    if (!view.defined()) return;
    data = view.data;
    dtype = view.dtype;
    row_stride = view.strides[0];
    column_stride = view.strides[1];
  }
  __device__ bool at(std::int64_t row, std::int64_t column) const {
    if (data == nullptr) return false;
    const std::int64_t i = row * row_stride + column * column_stride;
    switch (dtype) {
      case DType::boolean: return static_cast<const std::uint8_t*>(data)[i] != 0;
      case DType::int32: return static_cast<const std::int32_t*>(data)[i] != 0;
      default: return static_cast<const std::int64_t*>(data)[i] != 0;
    }
  }
};

struct Unpad {
  Mask mask, reserved;
  std::int64_t batch, seqlen, room;
  std::int64_t* indices;
  std::int32_t* cu_seqlens;
  std::int32_t* seqused;  // or null

  __device__ bool keeps(std::int64_t row, std::int64_t column) const {
    return column < seqlen && (mask.at(row, column) || reserved.at(row, column));
  }
};

// cu_seqlens[row + 1] = kept tokens of the row, for the moment.
__global__ void __launch_bounds__(kBlock) count_kernel(const __grid_constant__ Unpad p) {
  const std::int64_t row = blockIdx.x;
  int kept = 0;
  int real = 0;
  for (std::int64_t column = threadIdx.x; column < p.seqlen; column += kBlock) {
    kept += p.keeps(row, column);
    real += p.mask.at(row, column);
  }
  kept = reduce<kBlock>(kept, Sum());
  real = reduce<kBlock>(real, Sum());
  if (threadIdx.x != 0) return;
  p.cu_seqlens[row + 1] = kept;
  if (p.seqused) p.seqused[row] = real;
}

// One thread: batches have few rows. Counts become sums, up to the room that there is.
__global__ void sum_counts_kernel(const __grid_constant__ Unpad p) {
  std::int64_t sum = 0;
  p.cu_seqlens[0] = 0;
  for (std::int64_t row = 0; row < p.batch; ++row) {
    sum = min(sum + p.cu_seqlens[row + 1], p.room);
    p.cu_seqlens[row + 1] = static_cast<std::int32_t>(sum);
  }
}

// A block places the tokens of its row, kBlock at a time; the last block fills up what is left.
__global__ void __launch_bounds__(kBlock) place_kernel(const __grid_constant__ Unpad p) {
  __shared__ int of_warps[kBlock / kWarp];
  const std::int64_t row = blockIdx.x;
  const auto thread = static_cast<int>(threadIdx.x);
  if (row == p.batch) {
    for (std::int64_t i = p.cu_seqlens[p.batch] + thread; i < p.room; i += kBlock)
      p.indices[i] = kNoRow;
    return;
  }
  std::int64_t place = p.cu_seqlens[row];
  for (std::int64_t first = 0; first < p.seqlen; first += kBlock) {
    const std::int64_t column = first + thread;
    const bool keeps = p.keeps(row, column);
    const unsigned warp = __ballot_sync(0xFFFFFFFFu, keeps);
    __syncthreads();  // the last sums have been read
    if (thread % kWarp == 0) of_warps[thread / kWarp] = __popc(warp);
    __syncthreads();
    int before = __popc(warp & ((1u << (thread % kWarp)) - 1u));
    int all = 0;
    for (int i = 0; i < kBlock / kWarp; ++i) {
      if (i < thread / kWarp) before += of_warps[i];
      all += of_warps[i];
    }
    if (keeps && place + before < p.room) p.indices[place + before] = row * p.seqlen + column;
    place += all;
  }
}

}  // namespace

void unpad(const TensorView& mask, const TensorView& reserved, const TensorView& indices,
           const TensorView& cu_seqlens, const TensorView& seqused, Stream stream) {
  const Call call("unpad", mask.device, stream);
  const Unpad p{.mask = Mask(mask),
                .reserved = Mask(reserved),
                .batch = mask.size(0),
                .seqlen = mask.size(1),
                .room = indices.numel(),
                .indices = indices.as<std::int64_t>(),
                .cu_seqlens = cu_seqlens.as<std::int32_t>(),
                .seqused = seqused.defined() ? seqused.as<std::int32_t>() : nullptr};
  call.launch(count_kernel, p.batch, kBlock, p);
  call.launch(sum_counts_kernel, 1, 1, p);
  call.launch(place_kernel, p.batch + 1, kBlock, p);
}

}  // namespace flashmha::cuda::ops
