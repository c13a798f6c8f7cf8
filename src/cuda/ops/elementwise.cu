// Elementwise operations: every thread reads kVector elements of each input, computes, and writes
// as many of each output. Bytes bound.
#include "attention/philox.h"
#include "cuda/ops/call.h"
#include "cuda/ops/ops.h"
#include "cuda/ops/rows.cuh"

namespace flashmha::cuda::ops {
namespace {

template <int kCount>
struct Operands {
  TensorRows rows[kCount];
};

// op(r, j, x, y): elements [j, j + kVector) of row r, y from x.
template <int kInputs, int kOutputs, class Op>
__global__ void __launch_bounds__(kBlock)
    map_kernel(const __grid_constant__ Operands<kInputs> in,
               const __grid_constant__ Operands<kOutputs> out, std::int64_t vectors_per_row,
               std::int64_t num_vectors, const __grid_constant__ Op op) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (index >= num_vectors) return;
  const auto [r, vector] = divide(index, vectors_per_row);
  const std::int64_t j = vector * kVector;
  float x[kInputs][kVector];
  float y[kOutputs][kVector];
#pragma unroll
  for (int i = 0; i < kInputs; ++i)
    load(in.rows[i], row_offset(in.rows[i], r), j, x[i]);
  op(r, j, x, y);
#pragma unroll
  for (int i = 0; i < kOutputs; ++i)
    store(out.rows[i], row_offset(out.rows[i], r), j, y[i]);
}

template <int kInputs, int kOutputs, class Op>
void map(const Call& call, const TensorView (&inputs)[kInputs],
         const TensorView (&outputs)[kOutputs], const Op& op) {
  Operands<kInputs> in;
  Operands<kOutputs> out;
  for (int i = 0; i < kInputs; ++i)
    in.rows[i] = rows_of(inputs[i]);
  for (int i = 0; i < kOutputs; ++i)
    out.rows[i] = rows_of(outputs[i]);
  const std::int64_t vectors_per_row = (out.rows[0].length + kVector - 1) / kVector;
  const std::int64_t num_vectors = out.rows[0].count * vectors_per_row;
  call.launch(map_kernel<kInputs, kOutputs, Op>, (num_vectors + kBlock - 1) / kBlock, kBlock, in,
              out, vectors_per_row, num_vectors, op);
}

// The same for operations that do not ask where an element is: contiguous tensors are one row.
template <int kInputs, int kOutputs, class Op>
void map_flat(const Call& call, TensorView (&&inputs)[kInputs], TensorView (&&outputs)[kOutputs],
              const Op& op) {
  bool contiguous = true;
  for (const TensorView& view : inputs)
    contiguous &= view.is_contiguous();
  for (const TensorView& view : outputs)
    contiguous &= view.is_contiguous();
  if (contiguous) {
    for (TensorView& view : inputs)
      view = view.reshape({-1});
    for (TensorView& view : outputs)
      view = view.reshape({-1});
  }
  map(call, inputs, outputs, op);
}

struct Add {
  __device__ void operator()(std::int64_t, std::int64_t, const float (&x)[2][kVector],
                             float (&y)[1][kVector]) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      y[0][i] = x[0][i] + x[1][i];
  }
};

// An activation and its derivative.
struct Activated {
  float value, slope;
};

__device__ __forceinline__ Activated activate(Activation activation, float x) {
  if (activation == Activation::silu) {
    const float sigmoid = 1.0f / (1.0f + expf(-x));
    return {x * sigmoid, sigmoid * (1.0f + x * (1.0f - sigmoid))};
  }
  constexpr float kRoot = 0.7978845608028654f;  // sqrt(2 / pi)
  constexpr float kCubic = 0.044715f;
  const float t = tanhf(kRoot * (x + kCubic * x * x * x));
  const float inner = kRoot * (1.0f + 3.0f * kCubic * x * x);
  return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner};
}

struct Glu {
  Activation activation;
  __device__ void operator()(std::int64_t, std::int64_t, const float (&x)[2][kVector],
                             float (&y)[1][kVector]) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      y[0][i] = activate(activation, x[0][i]).value * x[1][i];
  }
};

struct GluGradient {
  Activation activation;
  // x: dout, gate, up; y: dgate, dup.
  __device__ void operator()(std::int64_t, std::int64_t, const float (&x)[3][kVector],
                             float (&y)[2][kVector]) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const Activated gate = activate(activation, x[1][i]);
      y[0][i] = x[0][i] * x[2][i] * gate.slope;
      y[1][i] = x[0][i] * gate.value;
    }
  }
};

struct Softcap {
  float cap;
  __device__ void operator()(std::int64_t, std::int64_t, const float (&x)[1][kVector],
                             float (&y)[1][kVector]) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      y[0][i] = cap * tanhf(x[0][i] / cap);
  }
};

struct SoftcapGradient {
  float cap;
  // x: dy, x.
  __device__ void operator()(std::int64_t, std::int64_t, const float (&x)[2][kVector],
                             float (&y)[1][kVector]) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float t = tanhf(x[1][i] / cap);
      y[0][i] = x[0][i] * (1.0f - t * t);
    }
  }
};

// The vectors of a row are the blocks of columns that share a draw.
static_assert(kVector == DropoutRows::kColumnsPerBlock);

struct DropElements {
  DropoutRows draws;
  float scale;
  std::int64_t seqlen_q;
  __device__ void operator()(std::int64_t r, std::int64_t j, const float (&x)[1][kVector],
                             float (&y)[1][kVector]) const {
    const auto [batch_head, row] = divide(r, seqlen_q);
    const std::uint32_t keep = draws.at(batch_head).keep_bits(row, j / kVector);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      y[0][i] = (keep >> i) & 1u ? x[0][i] * scale : 0.0f;
  }
};

struct FinishProduct {
  float beta;
  bool has_bias;
  // x: product, c, bias; the last two only where they are used.
  __device__ void operator()(std::int64_t, std::int64_t, const float (&x)[3][kVector],
                             float (&y)[1][kVector]) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      y[0][i] = x[0][i];
      if (beta != 0.0f) y[0][i] += beta * x[1][i];
      if (has_bias) y[0][i] += x[2][i];
    }
  }
};

}  // namespace

void add(const TensorView& a, const TensorView& b, const TensorView& out, Stream stream) {
  map_flat(Call("add", out.device, stream), {a, b}, {out}, Add{});
}

void glu(Activation activation, const TensorView& gate, const TensorView& up, const TensorView& out,
         Stream stream) {
  map_flat(Call("glu", out.device, stream), {gate, up}, {out}, Glu{activation});
}

void glu_backward(Activation activation, const TensorView& dout, const TensorView& gate,
                  const TensorView& up, const TensorView& dgate, const TensorView& dup,
                  Stream stream) {
  map_flat(Call("glu_backward", dout.device, stream), {dout, gate, up}, {dgate, dup},
           GluGradient{activation});
}

void softcap(const TensorView& x, float cap, const TensorView& y, Stream stream) {
  map_flat(Call("softcap", y.device, stream), {x}, {y}, Softcap{cap});
}

void softcap_backward(const TensorView& dy, const TensorView& x, float cap, const TensorView& dx,
                      Stream stream) {
  map_flat(Call("softcap_backward", dx.device, stream), {dy, x}, {dx}, SoftcapGradient{cap});
}

void attention_dropout(const TensorView& x, const Dropout& dropout, const TensorView& y,
                       Stream stream) {
  map(Call("attention_dropout", y.device, stream), {x}, {y},
      DropElements{DropoutRows(dropout, 0), 1.0f / (1.0f - dropout.p), x.size(2)});
}

void finish_product(const TensorView& product, const TensorView& c, const MatmulOptions& options,
                    Stream stream) {
  const bool has_bias = options.bias.defined();
  const TensorView old = options.beta != 0.0f ? c : product;
  const TensorView bias = has_bias ? options.bias.broadcast_to(c.shape) : product;
  map(Call("matmul", c.device, stream), {product, old, bias}, {c},
      FinishProduct{options.beta, has_bias});
}

}  // namespace flashmha::cuda::ops
