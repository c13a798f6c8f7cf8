// Sums over rows, for gradients of what all rows share. Groups of rows are summed by one block
// each, then the groups' sums in their order: the same bits every time.
#pragma once

#include <algorithm>

#include "cuda/ops/call.h"
#include "cuda/ops/rows.cuh"

namespace flashmha::cuda::ops {

constexpr int kColumnThreads = 32;  // side by side, kVector columns each
constexpr int kRowThreads = kBlock / kColumnThreads;
constexpr std::int64_t kColumnsPerBlock = kColumnThreads * kVector;

// sums[group][column] = sum over the rows of a group of term(r, j).
template <class Term>
__global__ void __launch_bounds__(kBlock)
    group_sums_kernel(const __grid_constant__ Term term, std::int64_t count, std::int64_t length,
                      std::int64_t num_groups, float* sums) {
  __shared__ float parts[kRowThreads][kColumnsPerBlock];
  const auto column = static_cast<int>(threadIdx.x % kColumnThreads) * kVector;
  const auto first = static_cast<int>(threadIdx.x / kColumnThreads);
  const auto [strip, group] = divide(blockIdx.x, num_groups);
  const std::int64_t j = strip * kColumnsPerBlock + column;
  float total[kVector] = {};
  if (j < length) {
    const std::int64_t end = (group + 1) * count / num_groups;
    for (std::int64_t r = group * count / num_groups + first; r < end; r += kRowThreads) {
      float x[kVector];
      term(r, j, x);
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        total[i] += x[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    parts[first][column + i] = total[i];
  __syncthreads();
  const std::int64_t own = strip * kColumnsPerBlock + threadIdx.x;
  if (own >= length) return;
  float sum = 0.0f;
#pragma unroll
  for (int row = 0; row < kRowThreads; ++row)
    sum += parts[row][threadIdx.x];
  sums[group * length + own] = sum;
}
static_assert(kColumnsPerBlock == kBlock, "one column a thread at the end");

// total[j] += the sums of all groups.
inline __global__ void __launch_bounds__(kBlock)
    add_groups_kernel(const float* sums, std::int64_t num_groups, std::int64_t length,
                      float* total) {
  const std::int64_t j = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (j >= length) return;
  float sum = 0.0f;
  for (std::int64_t group = 0; group < num_groups; ++group)
    sum += sums[group * length + j];
  total[j] += sum;
}

// total float32 [length], contiguous. term(r, j, x) writes elements [j, j + kVector) of row r to x.
template <class Term>
void add_column_sums(const Call& call, const Term& term, std::int64_t count, std::int64_t length,
                     float* total) {
  constexpr std::int64_t kRowsPerGroup = 64;
  constexpr std::int64_t kMostGroups = 512;
  constexpr std::int64_t kMostSums = std::int64_t{8} << 20;
  const std::int64_t room =
      std::clamp<std::int64_t>(kMostSums / std::max<std::int64_t>(length, 1), 1, kMostGroups);
  const std::int64_t num_groups = std::clamp<std::int64_t>(count / kRowsPerGroup, 1, room);
  const std::int64_t strips = (length + kColumnsPerBlock - 1) / kColumnsPerBlock;
  const Tensor scratch =
      call.scratch(static_cast<std::size_t>(num_groups * length) * sizeof(float));
  auto* sums = static_cast<float*>(scratch.view().data);
  call.launch(group_sums_kernel<Term>, strips * num_groups, kBlock, term, count, length, num_groups,
              sums);
  call.launch(add_groups_kernel, (length + kBlock - 1) / kBlock, kBlock, sums, num_groups, length,
              total);
}

}  // namespace flashmha::cuda::ops
