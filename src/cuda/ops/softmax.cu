// Softmax of materialised scores, and its gradient.
#include "cuda/ops/call.h"
#include "cuda/ops/ops.h"
#include "cuda/ops/rows.cuh"

namespace flashmha::cuda::ops {
namespace {

// Which columns of a matrix [batch, num_heads, seqlen_q, seqlen_k] take part.
struct ScoreShape {
  std::int64_t num_heads, seqlen_q, seqlen_k;
  std::int64_t window_left, window_right, shift;
  float softcap;
  const bool* mask = nullptr;  // none
  std::int64_t mask_strides[4] = {};
  const void* sinks = nullptr;  // none
  DType sinks_dtype = DType::float32;

  struct Row {
    std::int64_t begin, end;  // columns that the window shows
    std::int64_t head;
    const bool* mask;
  };

  __device__ Row row(std::int64_t r) const {
    const auto [batch_head, i] = divide(r, seqlen_q);
    const auto [batch, head] = divide(batch_head, num_heads);
    Row row{0, seqlen_k, head, nullptr};
    const std::int64_t center = i + shift;
    if (window_left >= 0) row.begin = center - window_left;
    if (window_right >= 0) row.end = center + window_right + 1;
    row.begin = min(max(row.begin, std::int64_t{0}), seqlen_k);
    row.end = min(max(row.end, row.begin), seqlen_k);
    if (mask != nullptr) {
      row.mask = mask + batch * mask_strides[0] + head * mask_strides[1] + i * mask_strides[2];
    }
    return row;
  }

  __device__ bool sees(const Row& row, std::int64_t column) const {
    return column >= row.begin && column < row.end &&
           (row.mask == nullptr || row.mask[column * mask_strides[3]]);
  }

  __device__ float sink(const Row& row) const {
    return sinks != nullptr ? load_one(sinks, sinks_dtype, row.head) : -INFINITY;
  }

  // What is exponentiated: -inf for columns that are not seen.
  __device__ void logits(const Row& row, std::int64_t j, float (&x)[kVector]) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (softcap > 0.0f) x[i] = softcap * tanhf(x[i] / softcap);
      if (!sees(row, j + i)) x[i] = -INFINITY;
    }
  }
};

ScoreShape shape_of(const TensorView& scores, const SoftmaxOptions& options) {
  ScoreShape shape{.num_heads = scores.size(1),
                   .seqlen_q = scores.size(2),
                   .seqlen_k = scores.size(3),
                   .window_left = options.window_left,
                   .window_right = options.window_right,
                   .shift = options.shift,
                   .softcap = options.softcap};
  if (options.mask.defined()) {
    const TensorView mask = options.mask.broadcast_to(scores.shape);
    shape.mask = mask.as<bool>();
    for (int dim = 0; dim < 4; ++dim)
      shape.mask_strides[dim] = mask.strides[dim];
  }
  if (options.sinks.defined()) {
    shape.sinks = options.sinks.data;
    shape.sinks_dtype = options.sinks.dtype;
  }
  return shape;
}

template <int kTeam>
__global__ void __launch_bounds__(kTeam* kTeamsPerBlock<kTeam>)
    softmax_kernel(const __grid_constant__ TensorRows scores,
                   const __grid_constant__ ScoreShape shape, const __grid_constant__ TensorRows out,
                   float* lse) {
  const Place<kTeam> place;
  if (place.row >= scores.count) return;
  const std::int64_t from = row_offset(scores, place.row);
  const std::int64_t to = row_offset(out, place.row);
  const ScoreShape::Row row = shape.row(place.row);
  float x[kVector];
  Denominator denominator;
  for (std::int64_t j = place.lane * kVector; j < row.end; j += kTeam * kVector) {
    if (j + kVector <= row.begin) continue;
    load(scores, from, j, x);
    shape.logits(row, j, x);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      denominator.add(x[i]);
  }
  denominator = reduce<kTeam>(denominator, MergeDenominators());
  denominator.add(shape.sink(row));
  const bool empty = denominator.largest == -INFINITY;
  const float scale = 1.0f / denominator.sum;
  if (lse != nullptr && place.lane == 0) {
    lse[place.row] = empty ? -INFINITY : denominator.largest + logf(denominator.sum);
  }
  for (std::int64_t j = place.lane * kVector; j < out.length; j += kTeam * kVector) {
    if (empty || j >= row.end || j + kVector <= row.begin) {
#pragma unroll
      for (float& value : x)
        value = 0.0f;
    } else {
      load(scores, from, j, x);
      shape.logits(row, j, x);
#pragma unroll
      for (float& value : x)
        value = value == -INFINITY ? 0.0f : expf(value - denominator.largest) * scale;
    }
    store(out, to, j, x);
  }
}

struct SoftmaxGradient {
  TensorRows p, dp, out;
  ScoreShape shape;
  TensorRows scores = {};       // with a softcap only
  const float* lse = nullptr;   // with sinks only
  float* sink_parts = nullptr;  // of every row, if they are wanted
};

// With D = sum(p dp): dscores = p (dp - D), and a sink of probability s gets -s D.
template <int kTeam>
__global__ void __launch_bounds__(kTeam* kTeamsPerBlock<kTeam>)
    softmax_gradient_kernel(const __grid_constant__ SoftmaxGradient g) {
  const Place<kTeam> place;
  if (place.row >= g.p.count) return;
  const std::int64_t p_row = row_offset(g.p, place.row);
  const std::int64_t dp_row = row_offset(g.dp, place.row);
  const std::int64_t out_row = row_offset(g.out, place.row);
  const ScoreShape::Row row = g.shape.row(place.row);
  float p[kVector];
  float dp[kVector];
  float mean = 0.0f;
  for (std::int64_t j = place.lane * kVector; j < row.end; j += kTeam * kVector) {
    if (j + kVector <= row.begin) continue;
    load(g.p, p_row, j, p);
    load(g.dp, dp_row, j, dp);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      mean += j + i >= row.begin && j + i < row.end ? p[i] * dp[i] : 0.0f;
  }
  mean = reduce<kTeam>(mean, Sum());
  if (g.sink_parts != nullptr && place.lane == 0) {
    g.sink_parts[place.row] = -expf(g.shape.sink(row) - g.lse[place.row]) * mean;
  }
  for (std::int64_t j = place.lane * kVector; j < g.out.length; j += kTeam * kVector) {
    load(g.p, p_row, j, p);
    load(g.dp, dp_row, j, dp);
    float x[kVector] = {};
    if (g.shape.softcap > 0.0f) load(g.scores, row_offset(g.scores, place.row), j, x);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const bool inside = j + i >= row.begin && j + i < row.end;
      dp[i] = inside ? p[i] * (dp[i] - mean) : 0.0f;
      if (inside && g.shape.softcap > 0.0f) {
        const float t = tanhf(x[i] / g.shape.softcap);
        dp[i] *= 1.0f - t * t;
      }
    }
    store(g.out, out_row, j, dp);
  }
}

// One block a head, over batches and rows in a fixed order.
__global__ void __launch_bounds__(kBlock)
    add_sinks_kernel(const float* parts, std::int64_t batch, std::int64_t num_heads,
                     std::int64_t seqlen_q, float* dsinks) {
  const std::int64_t head = blockIdx.x;
  float sum = 0.0f;
  for (std::int64_t i = threadIdx.x; i < batch * seqlen_q; i += kBlock) {
    const auto [b, row] = divide(i, seqlen_q);
    sum += parts[(b * num_heads + head) * seqlen_q + row];
  }
  sum = reduce<kBlock>(sum, Sum());
  if (threadIdx.x == 0) dsinks[head] += sum;
}

}  // namespace

void softmax(const TensorView& scores, const SoftmaxOptions& options,
             const TensorView& probabilities, const TensorView& lse, Stream stream) {
  const Call call("softmax", scores.device, stream);
  const TensorRows rows = rows_of(scores);
  float* sums = lse.defined() ? lse.as<float>() : nullptr;
  launch_rows(call, rows, softmax_kernel<kWarp>, softmax_kernel<kBlock>, rows,
              shape_of(scores, options), rows_of(probabilities), sums);
}

void softmax_backward(const TensorView& dprobabilities, const SoftmaxSaved& saved,
                      const SoftmaxOptions& options, const TensorView& dscores,
                      const TensorView& dsinks, Stream stream) {
  const Call call("softmax_backward", dscores.device, stream);
  SoftmaxGradient g{.p = rows_of(saved.probabilities),
                    .dp = rows_of(dprobabilities),
                    .out = rows_of(dscores),
                    .shape = shape_of(saved.probabilities, options)};
  if (options.softcap > 0.0f) g.scores = rows_of(saved.scores);
  Tensor parts;
  if (dsinks.defined()) {
    parts = Tensor::empty({g.p.count}, DType::float32, dscores.device, stream);
    g.sink_parts = parts.as<float>();
    g.lse = saved.lse.as<float>();
  }
  launch_rows(call, g.p, softmax_gradient_kernel<kWarp>, softmax_gradient_kernel<kBlock>, g);
  if (dsinks.defined()) {
    call.launch(add_sinks_kernel, g.shape.num_heads, kBlock, g.sink_parts,
                saved.probabilities.size(0), g.shape.num_heads, g.shape.seqlen_q,
                dsinks.as<float>());
  }
}

}  // namespace flashmha::cuda::ops
