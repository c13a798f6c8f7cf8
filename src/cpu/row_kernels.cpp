// Compiled once for each tier.

#include "cpu/row_kernels.h"

#include "cpu/vector_math.h"

namespace flashmha::cpu::FLASHMHA_ISA {
namespace {

// A whole vector, and the rest of a row: what a loop body reads and writes through.
struct Whole {
  template <class T>
  Vec load(const T* p) const {
    return FLASHMHA_ISA::load(p);
  }
  template <class T>
  void store(T* p, Vec v) const {
    FLASHMHA_ISA::store(p, v);
  }
  // v with other lanes than those of the row replaced: none here.
  Vec keep(Vec v, float) const { return v; }
};

struct Rest {
  int n;
  template <class T>
  Vec load(const T* p) const {
    return load_n(p, n);
  }
  template <class T>
  void store(T* p, Vec v) const {
    store_n(p, v, n);
  }
  Vec keep(Vec v, float otherwise) const { return select(lane_index() < n, v, set1(otherwise)); }
};

// body(i, lanes) for every vector of a row of n elements.
template <class Body>
inline void sweep(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    body(i, Whole{});
  if (i < n) body(i, Rest{static_cast<int>(n - i)});
}

template <class T>
void widen_row(const T* in, int64_t n, float* out) {
  sweep(n, [=](int64_t i, auto lanes) { lanes.store(out + i, lanes.load(in + i)); });
}

template <class T>
void narrow_row(const float* in, int64_t n, T* out) {
  sweep(n, [=](int64_t i, auto lanes) { lanes.store(out + i, lanes.load(in + i)); });
}

// Four chains hide the latency of the addition.
float dot(const float* a, const float* b, int64_t n) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int c = 0; c < 4; ++c) {
      const int64_t at = i + c * kLanes;
      sums[c] = fma(load(a + at), load(b + at), sums[c]);
    }
  }
  sweep(n - i, [&](int64_t j, auto lanes) {
    sums[0] = fma(lanes.load(a + i + j), lanes.load(b + i + j), sums[0]);
  });
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

float maximum(const float* x, int64_t n) {
  constexpr float kLowest = -__builtin_inff();
  Vec top = set1(kLowest);
  sweep(n, [&](int64_t i, auto lanes) { top = max(lanes.keep(lanes.load(x + i), kLowest), top); });
  return highest(top);
}

void add(const float* a, const float* b, int64_t n, float* out) {
  sweep(n, [=](int64_t i, auto lanes) {
    lanes.store(out + i, lanes.load(a + i) + lanes.load(b + i));
  });
}

void add_scaled(const float* x, float factor, int64_t n, float* total) {
  sweep(n, [=](int64_t i, auto lanes) {
    lanes.store(total + i, fma(lanes.load(x + i), set1(factor), lanes.load(total + i)));
  });
}

void add_product(const float* a, const float* b, float factor, int64_t n, float* total) {
  sweep(n, [=](int64_t i, auto lanes) {
    const Vec product = lanes.load(a + i) * lanes.load(b + i);
    lanes.store(total + i, fma(product, set1(factor), lanes.load(total + i)));
  });
}

void scale(const float* x, float factor, int64_t n, float* out) {
  sweep(n, [=](int64_t i, auto lanes) { lanes.store(out + i, lanes.load(x + i) * factor); });
}

void scale_by(const float* x, const float* weight, float factor, int64_t n, float* out) {
  sweep(n, [=](int64_t i, auto lanes) {
    lanes.store(out + i, lanes.load(x + i) * factor * lanes.load(weight + i));
  });
}

void norm_gradient(const float* d, const float* x, float mean, float rstd, int64_t n, float* dx) {
  sweep(n, [=](int64_t i, auto lanes) {
    lanes.store(dx + i, (lanes.load(d + i) - lanes.load(x + i) * mean) * rstd);
  });
}

inline Vec sigmoid(Vec x) {
  return 1.0f / (1.0f + exp(-x));
}

void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  sweep(n, [=](int64_t i, auto lanes) {
    const Vec x = lanes.load(gate + i);
    lanes.store(out + i, x * sigmoid(x) * lanes.load(up + i));
  });
}

// silu'(x) = s + x s (1 - s), s = sigmoid(x)
void silu_mul_gradient(const float* dout, const float* gate, const float* up, int64_t n,
                       float* dgate, float* dup) {
  sweep(n, [=](int64_t i, auto lanes) {
    const Vec x = lanes.load(gate + i);
    const Vec u = lanes.load(up + i);
    const Vec d = lanes.load(dout + i);
    const Vec s = sigmoid(x);
    lanes.store(dgate + i, d * u * (s + x * s * (1.0f - s)));
    lanes.store(dup + i, d * x * s);
  });
}

// gelu_tanh(x) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3), because (1 + tanh(u)) / 2 =
// sigmoid(2u). Beyond 16 the sigmoid is 0 or 1 in float; the clamp keeps x^3 finite.
struct Gelu {
  Vec sigmoid, slope;  // slope = 2 du/dx
};

inline Gelu gelu_tanh(Vec x) {
  constexpr float kFactor = 1.59576912160573071176f;  // 2 sqrt(2 / pi)
  constexpr float kCubic = 0.044715f;
  const Vec t = max(set1(-16.0f), min(set1(16.0f), x));
  const Vec square = t * t;
  return {sigmoid(t * (square * kCubic + 1.0f) * kFactor),
          (square * (3.0f * kCubic) + 1.0f) * kFactor};
}

void gelu_tanh_mul(const float* gate, const float* up, int64_t n, float* out) {
  sweep(n, [=](int64_t i, auto lanes) {
    const Vec x = lanes.load(gate + i);
    lanes.store(out + i, x * gelu_tanh(x).sigmoid * lanes.load(up + i));
  });
}

// gelu_tanh'(x) = s + x s (1 - s) slope
void gelu_tanh_mul_gradient(const float* dout, const float* gate, const float* up, int64_t n,
                            float* dgate, float* dup) {
  sweep(n, [=](int64_t i, auto lanes) {
    const Vec x = lanes.load(gate + i);
    const Vec u = lanes.load(up + i);
    const Vec d = lanes.load(dout + i);
    const auto [s, slope] = gelu_tanh(x);
    lanes.store(dgate + i, d * u * (s + x * s * (1.0f - s) * slope));
    lanes.store(dup + i, d * x * s);
  });
}

float exp_sum(const float* x, float shift, int64_t n, float* out) {
  Vec total = {};
  sweep(n, [&](int64_t i, auto lanes) {
    const Vec value = exp(lanes.load(x + i) - shift);
    lanes.store(out + i, value);
    total += lanes.keep(value, 0.0f);
  });
  return sum(total);
}

void softcap(const float* x, float cap, int64_t n, float* out) {
  const float inverse = 1.0f / cap;
  sweep(n, [=](int64_t i, auto lanes) {
    lanes.store(out + i, tanh(lanes.load(x + i) * inverse) * cap);
  });
}

void softcap_gradient(const float* x, float cap, int64_t n, float* d) {
  const float inverse = 1.0f / cap;
  sweep(n, [=](int64_t i, auto lanes) {
    const Vec t = tanh(lanes.load(x + i) * inverse);
    lanes.store(d + i, lanes.load(d + i) * (1.0f - t * t));
  });
}

void softmax_gradient(const float* p, const float* dp, float mean, int64_t n, float* out) {
  sweep(n, [=](int64_t i, auto lanes) {
    lanes.store(out + i, lanes.load(p + i) * (lanes.load(dp + i) - mean));
  });
}

void rotate(float* low, float* high, const float* cos, const float* sin, int64_t n) {
  sweep(n, [=](int64_t i, auto lanes) {
    const Vec x = lanes.load(low + i);
    const Vec y = lanes.load(high + i);
    const Vec c = lanes.load(cos + i);
    const Vec s = lanes.load(sin + i);
    lanes.store(low + i, x * c - y * s);
    lanes.store(high + i, y * c + x * s);
  });
}

// One vector instruction with -fno-math-errno.
inline Vec square_root(Vec v) {
  alignas(sizeof(Vec)) float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < kLanes; ++i)
    lanes[i] = __builtin_sqrtf(lanes[i]);
  return load(lanes);
}

void adamw(const RowKernels::AdamWStep& step, const float* gradient, int64_t n, float* parameter,
           float* moment1, float* moment2) {
  sweep(n, [=](int64_t i, auto lanes) {
    const Vec g = lanes.load(gradient + i) * step.gradient_scale;
    const Vec m = lanes.load(moment1 + i) * step.beta1 + g * (1.0f - step.beta1);
    const Vec v = lanes.load(moment2 + i) * step.beta2 + g * g * (1.0f - step.beta2);
    const Vec direction = (m * step.correction1) / (square_root(v * step.correction2) + step.eps);
    lanes.store(moment1 + i, m);
    lanes.store(moment2 + i, v);
    lanes.store(parameter + i,
                lanes.load(parameter + i) * step.decay - direction * step.learning_rate);
  });
}

}  // namespace

extern const RowKernels row_kernels;
constexpr RowKernels row_kernels = {
    .widen_bf16 = widen_row<Bf16>,
    .widen_fp16 = widen_row<Fp16>,
    .narrow_bf16 = narrow_row<Bf16>,
    .narrow_fp16 = narrow_row<Fp16>,
    .dot = dot,
    .maximum = maximum,
    .add = add,
    .add_scaled = add_scaled,
    .add_product = add_product,
    .scale = scale,
    .scale_by = scale_by,
    .norm_gradient = norm_gradient,
    .silu_mul = silu_mul,
    .silu_mul_gradient = silu_mul_gradient,
    .gelu_tanh_mul = gelu_tanh_mul,
    .gelu_tanh_mul_gradient = gelu_tanh_mul_gradient,
    .exp_sum = exp_sum,
    .softcap = softcap,
    .softcap_gradient = softcap_gradient,
    .softmax_gradient = softmax_gradient,
    .rotate = rotate,
    .adamw = adamw,
};

}  // namespace flashmha::cpu::FLASHMHA_ISA
