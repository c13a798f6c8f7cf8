// Normalisation, activation, rotary embedding.
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "cpu/ops.h"
#include "cpu/ops_rows.h"

namespace flashmha::cpu::ops {

namespace {

// What normalised values are multiplied by.
std::vector<float> norm_factors(const TensorView& weight, const RMSNormOptions& options) {
  std::vector<float> factors = to_floats(weight);
  for (float& factor : factors)
    factor += options.weight_offset;
  return factors;
}

}  // namespace

void rms_norm(const TensorView& x, const TensorView& weight, const RMSNormOptions& options,
              const TensorView& y, const TensorView& rstd, Stream) {
  const RowKernels& kernel = row_kernels();
  const Rows in(x);
  const Rows out(y);
  const std::int64_t n = in.length();
  const std::vector<float> factors = norm_factors(weight, options);
  parallel_blocks(in.count(), n, [&](std::int64_t begin, std::int64_t end) {
    const RowBuffer buffer(n);
    for (std::int64_t r = begin; r < end; ++r) {
      const float* row = in.read(r, buffer);
      const float scale =
          1.0f / std::sqrt(kernel.dot(row, row, n) / static_cast<float>(n) + options.eps);
      if (rstd.defined()) rstd.as<float>()[r] = scale;
      float* to = out.target(r, buffer);
      kernel.scale_by(row, factors.data(), scale, n, to);
      out.finish(r, to);
    }
  });
}

// With h = x * rstd, w = weight + offset: dx = rstd * (dy w - h * mean(dy w h)), dweight = sum over
// rows of dy h.
void rms_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& weight,
                       const RMSNormOptions& options, const TensorView& rstd, const TensorView& dx,
                       const TensorView& dweight, Stream) {
  const RowKernels& kernel = row_kernels();
  const Rows gradient(dy);
  const Rows in(x);
  const Rows out(dx);
  const std::int64_t n = in.length();
  const std::vector<float> factors = norm_factors(weight, options);
  float* total = dweight.defined() ? dweight.as<float>() : nullptr;
  reduce_rows(in.count(), n, total, [&](std::int64_t begin, std::int64_t end, float* sums) {
    const RowBuffer dy_buffer(n);
    const RowBuffer x_buffer(n);
    const RowBuffer direct(n);
    for (std::int64_t r = begin; r < end; ++r) {
      const float scale = rstd.as<float>()[r];
      const float* d = gradient.read(r, dy_buffer);
      const float* row = in.read(r, x_buffer);
      if (sums) kernel.add_product(d, row, scale, n, sums);
      kernel.scale_by(d, factors.data(), 1.0f, n, direct);
      const float mean = kernel.dot(direct, row, n) * scale * scale / static_cast<float>(n);
      float* to = out.target(r, dy_buffer);
      kernel.norm_gradient(direct, row, mean, scale, n, to);
      out.finish(r, to);
    }
  });
}

void glu(Activation activation, const TensorView& gate, const TensorView& up, const TensorView& out,
         Stream) {
  const RowKernels& kernels = row_kernels();
  const auto kernel = activation == Activation::silu ? kernels.silu_mul : kernels.gelu_tanh_mul;
  const std::vector<Rows> rows = elementwise_rows({gate, up, out});
  parallel_chunks(rows[0], [&](std::int64_t r, std::int64_t begin, std::int64_t n) {
    float buffers[2][kChunk];
    float* to = rows[2].target(r, begin, buffers[0]);
    kernel(rows[0].read(r, begin, n, buffers[0]), rows[1].read(r, begin, n, buffers[1]), n, to);
    rows[2].finish(r, begin, n, to);
  });
}

void glu_backward(Activation activation, const TensorView& dout, const TensorView& gate,
                  const TensorView& up, const TensorView& dgate, const TensorView& dup, Stream) {
  const RowKernels& kernels = row_kernels();
  const auto kernel =
      activation == Activation::silu ? kernels.silu_mul_gradient : kernels.gelu_tanh_mul_gradient;
  const std::vector<Rows> rows = elementwise_rows({dout, gate, up, dgate, dup});
  parallel_chunks(rows[0], [&](std::int64_t r, std::int64_t begin, std::int64_t n) {
    float buffers[3][kChunk];
    float* to_gate = rows[3].target(r, begin, buffers[1]);
    float* to_up = rows[4].target(r, begin, buffers[2]);
    kernel(rows[0].read(r, begin, n, buffers[0]), rows[1].read(r, begin, n, buffers[1]),
           rows[2].read(r, begin, n, buffers[2]), n, to_gate, to_up);
    rows[3].finish(r, begin, n, to_gate);
    rows[4].finish(r, begin, n, to_up);
  });
}

void softcap(const TensorView& x, float cap, const TensorView& y, Stream) {
  const std::vector<Rows> rows = elementwise_rows({x, y});
  parallel_chunks(rows[0], [&](std::int64_t r, std::int64_t begin, std::int64_t n) {
    float buffer[kChunk];
    float* to = rows[1].target(r, begin, buffer);
    row_kernels().softcap(rows[0].read(r, begin, n, buffer), cap, n, to);
    rows[1].finish(r, begin, n, to);
  });
}

void softcap_backward(const TensorView& dy, const TensorView& x, float cap, const TensorView& dx,
                      Stream) {
  const std::vector<Rows> rows = elementwise_rows({dy, x, dx});
  parallel_chunks(rows[0], [&](std::int64_t r, std::int64_t begin, std::int64_t n) {
    float buffers[2][kChunk];
    float* gradient = buffers[0];  // the kernel works in place, and x must not change before
    const float* from = rows[0].read(r, begin, n, gradient);
    if (from != gradient) std::copy(from, from + n, gradient);
    row_kernels().softcap_gradient(rows[1].read(r, begin, n, buffers[1]), cap, n, gradient);
    rows[2].finish(r, begin, n, gradient);
  });
}

void add(const TensorView& a, const TensorView& b, const TensorView& out, Stream) {
  const std::vector<Rows> rows = elementwise_rows({a, b, out});
  parallel_chunks(rows[0], [&](std::int64_t r, std::int64_t begin, std::int64_t n) {
    float buffers[2][kChunk];
    float* to = rows[2].target(r, begin, buffers[0]);
    row_kernels().add(rows[0].read(r, begin, n, buffers[0]), rows[1].read(r, begin, n, buffers[1]),
                      n, to);
    rows[2].finish(r, begin, n, to);
  });
}

namespace {

// What rotates the heads of one token.
struct Rotation {
  std::vector<float> cos, sin;  // rotary_dim / 2
  std::vector<float> head;      // head_dim: one head as floats
  std::vector<float> pairs;     // rotary_dim: interleaved pairs, taken apart

  Rotation(std::int64_t half, std::int64_t head_dim)
      : cos(static_cast<std::size_t>(half)),
        sin(static_cast<std::size_t>(half)),
        head(static_cast<std::size_t>(head_dim)),
        pairs(static_cast<std::size_t>(2 * half)) {}

  void look_up(const RotaryTables& tables, std::int64_t position, float direction) {
    const auto half = static_cast<std::int64_t>(cos.size());
    std::memcpy(cos.data(), tables.cos.as<float>() + position * half, cos.size() * sizeof(float));
    row_kernels().scale(tables.sin.as<float>() + position * half, direction, half, sin.data());
  }

  void apply(float* x, bool interleaved) {
    const auto half = static_cast<std::int64_t>(cos.size());
    if (!interleaved) {
      row_kernels().rotate(x, x + half, cos.data(), sin.data(), half);
      return;
    }
    float* low = pairs.data();
    float* high = low + half;
    for (std::int64_t i = 0; i < half; ++i) {
      low[i] = x[2 * i];
      high[i] = x[2 * i + 1];
    }
    row_kernels().rotate(low, high, cos.data(), sin.data(), half);
    for (std::int64_t i = 0; i < half; ++i) {
      x[2 * i] = low[i];
      x[2 * i + 1] = high[i];
    }
  }
};

// direction 1 rotates, -1 rotates back.
void rotate_heads(const TensorView& x, const RotaryTables& tables, const TensorView& positions,
                  const TensorView& y, float direction) {
  const Rows in(x);
  const Rows out(y);
  const std::int64_t heads = x.size(-2);
  const std::int64_t head_dim = x.size(-1);
  const std::int64_t limit = tables.cos.size(0);
  const auto* position = positions.as<std::int32_t>();
  for (std::int64_t token = 0; token < positions.numel(); ++token) {
    check(position[token] >= 0 && position[token] < limit,
          "[rotary] positions must be in [0, {}), the rows of the tables; got {} at token {}",
          limit, position[token], token);
  }
  parallel_blocks(positions.numel(), heads * head_dim, [&](std::int64_t begin, std::int64_t end) {
    Rotation rotation(tables.cos.size(1), head_dim);
    for (std::int64_t token = begin; token < end; ++token) {
      rotation.look_up(tables, position[token], direction);
      for (std::int64_t r = token * heads; r < (token + 1) * heads; ++r) {
        const float* from = in.read(r, rotation.head.data());
        float* to = out.target(r, rotation.head.data());
        if (to != from) std::copy(from, from + head_dim, to);
        rotation.apply(to, tables.interleaved);
        out.finish(r, to);
      }
    }
  });
}

}  // namespace

void rotary(const TensorView& x, const RotaryTables& tables, const TensorView& positions,
            const TensorView& y, Stream) {
  rotate_heads(x, tables, positions, y, 1.0f);
}

void rotary_backward(const TensorView& dy, const RotaryTables& tables, const TensorView& positions,
                     const TensorView& dx, Stream) {
  rotate_heads(dy, tables, positions, dx, -1.0f);
}

}  // namespace flashmha::cpu::ops
