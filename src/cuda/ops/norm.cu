// RMSNorm, and the gradient of a bias.
#include "cuda/ops/call.h"
#include "cuda/ops/column_sums.cuh"
#include "cuda/ops/ops.h"
#include "cuda/ops/rows.cuh"

namespace flashmha::cuda::ops {
namespace {

// Two passes over a row, the second out of the cache.
template <int kTeam>
__global__ void __launch_bounds__(kTeam* kTeamsPerBlock<kTeam>)
    norm_kernel(const __grid_constant__ TensorRows x, const __grid_constant__ TensorRows weight,
                RMSNormOptions options, const __grid_constant__ TensorRows y, float* rstd) {
  const Place<kTeam> place;
  if (place.row >= x.count) return;
  const std::int64_t from = row_offset(x, place.row);
  const std::int64_t to = row_offset(y, place.row);
  float values[kVector];
  float squares = 0.0f;
  for (std::int64_t j = place.lane * kVector; j < x.length; j += kTeam * kVector) {
    load(x, from, j, values);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      squares += values[i] * values[i];
  }
  squares = reduce<kTeam>(squares, Sum());
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(x.length) + options.eps);
  if (rstd != nullptr && place.lane == 0) rstd[place.row] = scale;
  for (std::int64_t j = place.lane * kVector; j < x.length; j += kTeam * kVector) {
    float factors[kVector];
    load(x, from, j, values);
    load(weight, 0, j, factors);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      values[i] *= (factors[i] + options.weight_offset) * scale;
    store(y, to, j, values);
  }
}

struct NormGradient {
  TensorRows dy, x, weight, dx;
  const float* rstd;
  float weight_offset;
};

// With h = x * rstd, w = weight + offset: dx = rstd * (dy w - h * mean(dy w h)).
template <int kTeam>
__global__ void __launch_bounds__(kTeam* kTeamsPerBlock<kTeam>)
    norm_gradient_kernel(const __grid_constant__ NormGradient p) {
  const Place<kTeam> place;
  if (place.row >= p.x.count) return;
  const std::int64_t dy_row = row_offset(p.dy, place.row);
  const std::int64_t x_row = row_offset(p.x, place.row);
  const std::int64_t dx_row = row_offset(p.dx, place.row);
  float d[kVector];
  float x[kVector];
  float w[kVector];
  float dot = 0.0f;
  for (std::int64_t j = place.lane * kVector; j < p.x.length; j += kTeam * kVector) {
    load(p.dy, dy_row, j, d);
    load(p.x, x_row, j, x);
    load(p.weight, 0, j, w);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      dot += d[i] * (w[i] + p.weight_offset) * x[i];
  }
  dot = reduce<kTeam>(dot, Sum());
  const float scale = p.rstd[place.row];
  const float mean = dot * scale * scale / static_cast<float>(p.x.length);
  for (std::int64_t j = place.lane * kVector; j < p.x.length; j += kTeam * kVector) {
    load(p.dy, dy_row, j, d);
    load(p.x, x_row, j, x);
    load(p.weight, 0, j, w);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      d[i] = scale * (d[i] * (w[i] + p.weight_offset) - mean * x[i]);
    store(p.dx, dx_row, j, d);
  }
}

// dweight = sum over rows of dy h.
struct WeightGradientTerm {
  TensorRows dy, x;
  const float* rstd;
  __device__ void operator()(std::int64_t r, std::int64_t j, float (&term)[kVector]) const {
    float values[kVector];
    load(dy, row_offset(dy, r), j, term);
    load(x, row_offset(x, r), j, values);
    const float scale = rstd[r];
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      term[i] *= values[i] * scale;
  }
};

struct RowTerm {
  TensorRows rows;
  __device__ void operator()(std::int64_t r, std::int64_t j, float (&term)[kVector]) const {
    load(rows, row_offset(rows, r), j, term);
  }
};

}  // namespace

void rms_norm(const TensorView& x, const TensorView& weight, const RMSNormOptions& options,
              const TensorView& y, const TensorView& rstd, Stream stream) {
  const Call call("rms_norm", x.device, stream);
  const TensorRows rows = rows_of(x);
  float* scales = rstd.defined() ? rstd.as<float>() : nullptr;
  launch_rows(call, rows, norm_kernel<kWarp>, norm_kernel<kBlock>, rows, rows_of(weight), options,
              rows_of(y), scales);
}

void rms_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& weight,
                       const RMSNormOptions& options, const TensorView& rstd, const TensorView& dx,
                       const TensorView& dweight, Stream stream) {
  const Call call("rms_norm_backward", x.device, stream);
  const NormGradient p{.dy = rows_of(dy),
                       .x = rows_of(x),
                       .weight = rows_of(weight),
                       .dx = rows_of(dx),
                       .rstd = rstd.as<float>(),
                       .weight_offset = options.weight_offset};
  if (dweight.defined()) {  // first, because dx may be dy
    add_column_sums(call, WeightGradientTerm{p.dy, p.x, p.rstd}, p.x.count, p.x.length,
                    dweight.as<float>());
  }
  launch_rows(call, p.x, norm_gradient_kernel<kWarp>, norm_gradient_kernel<kBlock>, p);
}

void bias_gradient(const TensorView& dout, const TensorView& gradient, Stream stream) {
  const Call call("bias_gradient", dout.device, stream);
  const TensorRows rows = rows_of(dout);
  add_column_sums(call, RowTerm{rows}, rows.count, rows.length, gradient.as<float>());
}

}  // namespace flashmha::cuda::ops
