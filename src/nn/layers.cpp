#include "flashmha/layers.h"

#include "core/check.h"
#include "core/format.h"

namespace flashmha::nn {
namespace {

Tensor empty_like(const TensorView& view) {
  return Tensor::empty(view.shape, view.dtype, view.device);
}

// [rows, features] of a contiguous [..., features]: one matrix product instead of a batch of them.
TensorView as_matrix(const TensorView& x) {
  return x.rank() > 1 && x.is_contiguous()
             ? x.reshape({x.numel() / std::max<std::int64_t>(1, x.size(-1)), x.size(-1)})
             : x;
}

Shape with_features(const TensorView& x, std::int64_t features) {
  Shape shape = x.shape;
  shape[shape.rank - 1] = features;
  return shape;
}

void check_features(const char* layer, const TensorView& x, std::int64_t features) {
  check(x.rank() >= 2 && x.size(-1) == features,
        "[{}] x must be [...,{}] with rank 2 or more; got {}", layer, features, x);
}

}  // namespace

const TensorView& Parameter::gradient_sum() {
  check(defined(), "[Parameter::gradient_sum] the parameter is not defined");
  if (!gradient.defined()) {
    gradient = Tensor::zeros(value.shape(), DType::float32, value.device());
  }
  return gradient;
}

void Parameter::zero_gradient() {
  if (gradient.defined()) fill(gradient, 0.0);
}

Linear::Linear(std::int64_t in_features, std::int64_t out_features, bool with_bias, DType dtype,
               Device device) {
  weight.value = Tensor::zeros({out_features, in_features}, dtype, device);
  if (with_bias) bias.value = Tensor::zeros({out_features}, dtype, device);
}

Tensor Linear::forward(const TensorView& x) const {
  check_features("Linear", x, in_features());
  Tensor y = Tensor::empty(with_features(x, out_features()), x.dtype, x.device);
  const TensorView weight_t = weight.value.view().transpose(0, 1);
  ops::matmul(as_matrix(x), weight_t, x.is_contiguous() ? as_matrix(y) : y.view(),
              {.bias = bias.value});
  return y;
}

Tensor Linear::backward(const TensorView& dout, const TensorView& x) {
  Tensor dx = empty_like(x);
  backward_into(dout, x, dx, false);
  return dx;
}

void Linear::backward_into(const TensorView& dout, const TensorView& x, const TensorView& dx,
                           bool accumulate) {
  check_features("Linear", x, in_features());
  check(dout.shape == with_features(x, out_features()) && dx.shape == x.shape,
        "[Linear] dout must be [...,{}] and dx as x; got dout {}, x {}, dx {}", out_features(),
        dout, x, dx);
  check(dout.is_contiguous() && x.is_contiguous() && dx.is_contiguous(),
        "[Linear] the backward needs contiguous tensors; got dout {}, x {}, dx {} with strides {}, "
        "{}, {}",
        dout, x, dx, dout.strides, x.strides, dx.strides);
  const TensorView d = as_matrix(dout);
  ops::matmul(d, weight.value, as_matrix(dx), {.beta = accumulate ? 1.0f : 0.0f});
  ops::matmul(d.transpose(0, 1), as_matrix(x), weight.gradient_sum(), {.beta = 1.0f});
  if (bias.defined()) ops::bias_gradient(d, bias.gradient_sum());
}

void Linear::visit(const std::string& prefix, const ParameterVisitor& visitor) {
  if (weight.defined()) visitor(prefix + "weight", weight);
  if (bias.defined()) visitor(prefix + "bias", bias);
}

RMSNorm::RMSNorm(std::int64_t features, const ops::RMSNormOptions& norm_options, DType dtype,
                 Device device)
    : options(norm_options) {
  weight.value = Tensor::empty({features}, dtype, device);
  fill(weight.value, 1.0 - static_cast<double>(options.weight_offset));
}

Tensor RMSNorm::forward(const TensorView& x, Saved* saved) const {
  check_features("RMSNorm", x, weight.value.size(0));
  Tensor y = empty_like(x);
  TensorView rstd;
  if (saved) {
    Shape leading = x.shape;
    leading[--leading.rank] = 0;
    saved->rstd = Tensor::empty(leading, DType::float32, x.device);
    rstd = saved->rstd;
  }
  ops::rms_norm(x, weight.value, options, y, rstd);
  return y;
}

Tensor RMSNorm::backward(const TensorView& dout, const TensorView& x, const Saved& saved) {
  Tensor dx = empty_like(x);
  ops::rms_norm_backward(dout, x, weight.value, options, saved.rstd, dx, weight.gradient_sum());
  return dx;
}

void RMSNorm::visit(const std::string& prefix, const ParameterVisitor& visitor) {
  if (weight.defined()) visitor(prefix + "weight", weight);
}

MLP::MLP(std::int64_t hidden_size, std::int64_t intermediate_size, ops::Activation gate_activation,
         bool with_bias, DType dtype, Device device)
    : activation(gate_activation),
      gate_proj(hidden_size, intermediate_size, with_bias, dtype, device),
      up_proj(hidden_size, intermediate_size, with_bias, dtype, device),
      down_proj(intermediate_size, hidden_size, with_bias, dtype, device) {}

Tensor MLP::forward(const TensorView& x, Saved* saved) const {
  Tensor gate = gate_proj.forward(x);
  Tensor up = up_proj.forward(x);
  if (!saved) {
    ops::glu(activation, gate, up, gate);
    return down_proj.forward(gate);
  }
  const Tensor activated = empty_like(gate);
  ops::glu(activation, gate, up, activated);
  saved->gate = std::move(gate);
  saved->up = std::move(up);
  return down_proj.forward(activated);
}

// The activation is computed again: it is cheap, and to keep it would cost as much memory as gate.
Tensor MLP::backward(const TensorView& dout, const TensorView& x, const Saved& saved) {
  const Tensor activated = empty_like(saved.gate);
  ops::glu(activation, saved.gate, saved.up, activated);
  const Tensor dactivated = down_proj.backward(dout, activated);
  const Tensor dgate = empty_like(saved.gate);
  ops::glu_backward(activation, dactivated, saved.gate, saved.up, dgate, dactivated);
  Tensor dx = gate_proj.backward(dgate, x);
  up_proj.backward_into(dactivated, x, dx, true);
  return dx;
}

void MLP::visit(const std::string& prefix, const ParameterVisitor& visitor) {
  gate_proj.visit(prefix + "gate_proj.", visitor);
  up_proj.visit(prefix + "up_proj.", visitor);
  down_proj.visit(prefix + "down_proj.", visitor);
}

}  // namespace flashmha::nn
