// Layers as plain structs of parameters with forward and backward.
//
// Conventions of all layers:
//   - x is [..., features], floating, of the parameters' dtype; outputs have x's dtype.
//   - forward is const. What the backward needs besides x goes into a Saved struct if one is given.
//   - backward takes the gradient of the output, the x of the forward and what it saved; returns
//     the gradient of x and adds to the gradients of the parameters.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "flashmha/ops.h"
#include "flashmha/tensor.h"

namespace flashmha::nn {

// A trainable tensor.
struct Parameter {
  Tensor value;
  Tensor gradient;  // float32, value's shape; not defined before the first backward

  bool defined() const { return value.defined(); }
  // The gradient to add to; allocated as zeros when first asked for.
  const TensorView& gradient_sum();
  // Zeros the gradient if there is one.
  void zero_gradient();
};

// Called with a name like "q_proj.weight" (Hugging Face's names) for every parameter that is
// defined.
using ParameterVisitor = std::function<void(const std::string& name, Parameter& parameter)>;

// y = x weight^T + bias.
struct Linear {
  Parameter weight;  // [out_features, in_features]
  Parameter bias;    // [out_features] or not defined

  Linear() = default;
  // Zero weights.
  Linear(std::int64_t in_features, std::int64_t out_features, bool with_bias, DType dtype,
         Device device = {});

  std::int64_t in_features() const { return weight.value.size(1); }
  std::int64_t out_features() const { return weight.value.size(0); }

  Tensor forward(const TensorView& x) const;
  Tensor backward(const TensorView& dout, const TensorView& x);
  // The same, but the gradient of x is written (accumulate: added) to dx.
  void backward_into(const TensorView& dout, const TensorView& x, const TensorView& dx,
                     bool accumulate);
  void visit(const std::string& prefix, const ParameterVisitor& visitor);
};

// y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset) over the last dimension.
struct RMSNorm {
  Parameter weight;  // [features]
  ops::RMSNormOptions options{};

  struct Saved {
    Tensor rstd;  // float32, x's shape without the last dimension
  };

  RMSNorm() = default;
  // Factors of one: weights of 1 - weight_offset.
  RMSNorm(std::int64_t features, const ops::RMSNormOptions& options, DType dtype,
          Device device = {});

  Tensor forward(const TensorView& x, Saved* saved = nullptr) const;
  Tensor backward(const TensorView& dout, const TensorView& x, const Saved& saved);
  void visit(const std::string& prefix, const ParameterVisitor& visitor);
};

// down_proj(activation(gate_proj(x)) * up_proj(x)).
struct MLP {
  ops::Activation activation = ops::Activation::silu;
  Linear gate_proj;  // [intermediate_size, hidden_size]
  Linear up_proj;    // [intermediate_size, hidden_size]
  Linear down_proj;  // [hidden_size, intermediate_size]

  struct Saved {
    Tensor gate;  // [..., intermediate_size]
    Tensor up;    // [..., intermediate_size]
  };

  MLP() = default;
  MLP(std::int64_t hidden_size, std::int64_t intermediate_size, ops::Activation activation,
      bool with_bias, DType dtype, Device device = {});

  Tensor forward(const TensorView& x, Saved* saved = nullptr) const;
  Tensor backward(const TensorView& dout, const TensorView& x, const Saved& saved);
  void visit(const std::string& prefix, const ParameterVisitor& visitor);
};

}  // namespace flashmha::nn
