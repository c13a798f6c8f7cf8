#pragma once

#include <cstdint>

#include "cpu/storage.h"

namespace flashmha::cpu {

// Loops over contiguous rows of floats, one instruction set each: what the operations around
// attention spend their time in. 16-bit rows are widened into a buffer that stays in the
// first-level cache, worked on, and narrowed. Outputs may be inputs unless that is excluded. Sums
// are in float, in an order that depends on the row's length only.
struct RowKernels {
  void (*widen_bf16)(const Bf16* in, int64_t n, float* out);
  void (*widen_fp16)(const Fp16* in, int64_t n, float* out);
  void (*narrow_bf16)(const float* in, int64_t n, Bf16* out);
  void (*narrow_fp16)(const float* in, int64_t n, Fp16* out);

  float (*dot)(const float* a, const float* b, int64_t n);
  float (*maximum)(const float* x, int64_t n);  // -inf for n = 0; a NaN may be passed over
  void (*add)(const float* a, const float* b, int64_t n, float* out);
  void (*add_scaled)(const float* x, float factor, int64_t n, float* sum);  // sum += factor x
  void (*add_product)(const float* a, const float* b, float factor, int64_t n,
                      float* sum);                                     // sum += factor a b
  void (*scale)(const float* x, float factor, int64_t n, float* out);  // factor x
  void (*scale_by)(const float* x, const float* weight, float factor, int64_t n,
                   float* out);  // factor x weight
  // dx = rstd * (d - mean * x), the row gradient of RMSNorm.
  void (*norm_gradient)(const float* d, const float* x, float mean, float rstd, int64_t n,
                        float* dx);

  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*silu_mul_gradient)(const float* dout, const float* gate, const float* up, int64_t n,
                            float* dgate, float* dup);
  void (*gelu_tanh_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*gelu_tanh_mul_gradient)(const float* dout, const float* gate, const float* up, int64_t n,
                                 float* dgate, float* dup);

  // out = exp(x - shift); returns the sum.
  float (*exp_sum)(const float* x, float shift, int64_t n, float* out);
  void (*softcap)(const float* x, float cap, int64_t n, float* out);  // cap * tanh(x / cap)
  // d *= 1 - tanh(x / cap)^2
  void (*softcap_gradient)(const float* x, float cap, int64_t n, float* d);
  // out = p (dp - mean)
  void (*softmax_gradient)(const float* p, const float* dp, float mean, int64_t n, float* out);

  // (low, high) = (low cos - high sin, high cos + low sin), elementwise.
  void (*rotate)(float* low, float* high, const float* cos, const float* sin, int64_t n);

  // One AdamW step on n elements; `correction` are 1 / (1 - beta^step).
  struct AdamWStep {
    float learning_rate, beta1, beta2, eps, decay;  // decay = 1 - learning_rate * weight_decay
    float correction1, correction2;
    float gradient_scale;
  };
  void (*adamw)(const AdamWStep& step, const float* gradient, int64_t n, float* parameter,
                float* moment1, float* moment2);
};

}  // namespace flashmha::cpu
