// Rotary embedding. A thread rotates kVector pairs of one head, or copies as many elements of what
// is not rotated. Positions outside the tables give NaN.
#include "cuda/ops/call.h"
#include "cuda/ops/ops.h"
#include "cuda/ops/rows.cuh"

namespace flashmha::cuda::ops {
namespace {

struct Rotation {
  TensorRows x, y;  // a row is one head of one token
  const float* cos;
  const float* sin;  // [num_positions, half]
  const std::int32_t* positions;
  std::int64_t num_positions, half, num_heads;
  std::int64_t vectors_of_pairs = 0;
  std::int64_t vectors_per_row = 0;
  float direction;  // -1: back
  bool interleaved;
};

// Of kVector pairs from pair i on: `low` holds their first elements, `high` the second ones.
__device__ void rotate(const Rotation& p, std::int64_t token, std::int64_t i, float (&low)[kVector],
                       float (&high)[kVector]) {
  const std::int64_t position = p.positions[token];
  const bool known = position >= 0 && position < p.num_positions;
#pragma unroll
  for (int n = 0; n < kVector; ++n) {
    if (i + n >= p.half) break;
    const float cosine = known ? p.cos[position * p.half + i + n] : NAN;
    const float sine = known ? p.sin[position * p.half + i + n] * p.direction : NAN;
    const float first = low[n];
    low[n] = first * cosine - high[n] * sine;
    high[n] = high[n] * cosine + first * sine;
  }
}

__global__ void __launch_bounds__(kBlock) rotary_kernel(const __grid_constant__ Rotation p) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  const auto [r, vector] = divide(index, p.vectors_per_row);
  if (r >= p.x.count) return;
  const std::int64_t from = row_offset(p.x, r);
  const std::int64_t to = row_offset(p.y, r);
  float low[kVector];
  float high[kVector];
  if (vector >= p.vectors_of_pairs) {
    const std::int64_t j = 2 * p.half + (vector - p.vectors_of_pairs) * kVector;
    load(p.x, from, j, low);
    store(p.y, to, j, low);
    return;
  }
  const std::int64_t i = vector * kVector;
  const std::int64_t token = divide(r, p.num_heads).quotient;
  TensorRows x = p.x;  // of which only the pairs are visible
  TensorRows y = p.y;
  if (!p.interleaved) {
    x.length = y.length = p.half;
    load(x, from, i, low);
    load(x, from + p.half * x.step, i, high);
    rotate(p, token, i, low, high);
    store(y, to, i, low);
    store(y, to + p.half * y.step, i, high);
    return;
  }
  x.length = y.length = 2 * p.half;
  float pairs[2][kVector];
  load(x, from, 2 * i, pairs[0]);
  load(x, from, 2 * i + kVector, pairs[1]);
#pragma unroll
  for (int n = 0; n < kVector; ++n) {
    low[n] = pairs[2 * n / kVector][2 * n % kVector];
    high[n] = pairs[2 * n / kVector][2 * n % kVector + 1];
  }
  rotate(p, token, i, low, high);
#pragma unroll
  for (int n = 0; n < kVector; ++n) {
    pairs[2 * n / kVector][2 * n % kVector] = low[n];
    pairs[2 * n / kVector][2 * n % kVector + 1] = high[n];
  }
  store(y, to, 2 * i, pairs[0]);
  store(y, to, 2 * i + kVector, pairs[1]);
}

void rotate_heads(const char* function, const TensorView& x, const RotaryTables& tables,
                  const TensorView& positions, const TensorView& y, float direction,
                  Stream stream) {
  const Call call(function, x.device, stream);
  const std::int64_t half = tables.cos.size(1);
  const auto vectors = [](std::int64_t n) { return (n + kVector - 1) / kVector; };
  Rotation p{.x = rows_of(x),
             .y = rows_of(y),
             .cos = tables.cos.as<float>(),
             .sin = tables.sin.as<float>(),
             .positions = positions.as<std::int32_t>(),
             .num_positions = tables.cos.size(0),
             .half = half,
             .num_heads = x.size(-2),
             .vectors_of_pairs = vectors(half),
             .direction = direction,
             .interleaved = tables.interleaved};
  p.vectors_per_row = p.vectors_of_pairs + vectors(x.size(-1) - 2 * half);
  if (half % kVector != 0) p.x.aligned = p.y.aligned = false;
  const std::int64_t num_vectors = p.x.count * p.vectors_per_row;
  call.launch(rotary_kernel, (num_vectors + kBlock - 1) / kBlock, kBlock, p);
}

}  // namespace

void rotary(const TensorView& x, const RotaryTables& tables, const TensorView& positions,
            const TensorView& y, Stream stream) {
  rotate_heads("rotary", x, tables, positions, y, 1.0f, stream);
}

void rotary_backward(const TensorView& dy, const RotaryTables& tables, const TensorView& positions,
                     const TensorView& dx, Stream stream) {
  rotate_heads("rotary_backward", dy, tables, positions, dx, -1.0f, stream);
}

}  // namespace flashmha::cuda::ops
