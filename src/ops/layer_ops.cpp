// Checks and dispatch: matrix product, normalisation, activation, rotary embedding.
#include "ops/rules.h"

namespace flashmha::ops {

void matmul(const TensorView& a, const TensorView& b, const TensorView& c,
            const MatmulOptions& options, Stream stream) {
  require_floating("matmul", {{"a", a}, {"b", b}, {"c", c}});
  check(a.rank() >= 2 && b.rank() >= 2 && c.rank() >= 2,
        "[matmul] a, b and c must have rank 2 or more; got {}, {}, {}", a, b, c);
  check(a.size(-1) == b.size(-2) && a.size(-2) == c.size(-2) && b.size(-1) == c.size(-1),
        "[matmul] a [...,m,k], b [...,k,n] and c [...,m,n] must fit together; got {}, {}, {}",
        a.shape, b.shape, c.shape);
  if (options.bias.defined()) {
    require_floating("matmul", {{"bias", options.bias}});
    require_shape("matmul", {"bias", options.bias}, {c.size(-1)});
  }
  const OpsTable& table = backend("matmul", {{"a", a}, {"b", b}, {"c", c}, {"bias", options.bias}});
  Shape batch_a = c.shape;
  Shape batch_b = c.shape;
  for (int dim : {-2, -1}) {
    batch_a[c.rank() + dim] = a.size(dim);
    batch_b[c.rank() + dim] = b.size(dim);
  }
  const TensorView full_a = a.broadcast_to(batch_a);
  const TensorView full_b = b.broadcast_to(batch_b);
  if (c.numel() > 0) table.matmul(full_a, full_b, c, options, stream);
}

void bias_gradient(const TensorView& dout, const TensorView& gradient, Stream stream) {
  require_floating("bias_gradient", {{"dout", dout}});
  require_rows("bias_gradient", {{"dout", dout}});
  require_dtype("bias_gradient", {"gradient", gradient}, DType::float32);
  require_shape("bias_gradient", {"gradient", gradient}, {dout.size(-1)});
  require_contiguous("bias_gradient", {"gradient", gradient});
  const OpsTable& table = backend("bias_gradient", {{"dout", dout}, {"gradient", gradient}});
  if (dout.numel() > 0) table.bias_gradient(dout, gradient, stream);
}

namespace {

// What the forward and the backward of RMSNorm have in common.
void check_norm(std::string_view function, const Named& x, const TensorView& weight,
                const TensorView& rstd, const Named& y) {
  require_floating(function, {x, {"weight", weight}, y});
  require_rows(function, {x, {"weight", weight}, y});
  require_shape(function, {"weight", weight}, {x.view.size(-1)});
  require_shape(function, y, x.view.shape);
  if (rstd.defined()) {
    require_dtype(function, {"rstd", rstd}, DType::float32);
    require_shape(function, {"rstd", rstd}, leading_shape(x.view.shape));
    require_contiguous(function, {"rstd", rstd});
  }
}

}  // namespace

void rms_norm(const TensorView& x, const TensorView& weight, const RMSNormOptions& options,
              const TensorView& y, const TensorView& rstd, Stream stream) {
  check_norm("rms_norm", {"x", x}, weight, rstd, {"y", y});
  const OpsTable& table =
      backend("rms_norm", {{"x", x}, {"weight", weight}, {"y", y}, {"rstd", rstd}});
  if (x.numel() > 0) table.rms_norm(x, weight, options, y, rstd, stream);
}

void rms_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& weight,
                       const RMSNormOptions& options, const TensorView& rstd, const TensorView& dx,
                       const TensorView& dweight, Stream stream) {
  require_given("rms_norm_backward", {"rstd", rstd});
  check_norm("rms_norm_backward", {"x", x}, weight, rstd, {"dy", dy});
  check_norm("rms_norm_backward", {"x", x}, weight, rstd, {"dx", dx});
  if (dweight.defined()) {
    require_dtype("rms_norm_backward", {"dweight", dweight}, DType::float32);
    require_shape("rms_norm_backward", {"dweight", dweight}, weight.shape);
    require_contiguous("rms_norm_backward", {"dweight", dweight});
  }
  const OpsTable& table = backend(
      "rms_norm_backward",
      {{"dy", dy}, {"x", x}, {"weight", weight}, {"rstd", rstd}, {"dx", dx}, {"dweight", dweight}});
  if (x.numel() > 0) table.rms_norm_backward(dy, x, weight, options, rstd, dx, dweight, stream);
}

namespace {

// Elementwise operations: floating, equal shapes, rows.
const OpsTable& check_elementwise(std::string_view function, std::initializer_list<Named> tensors) {
  require_floating(function, tensors);
  require_rows(function, tensors);
  for (const Named& tensor : tensors) {
    require_shape(function, tensor, tensors.begin()->view.shape);
  }
  return backend(function, tensors);
}

}  // namespace

void glu(Activation activation, const TensorView& gate, const TensorView& up, const TensorView& out,
         Stream stream) {
  const OpsTable& table = check_elementwise("glu", {{"gate", gate}, {"up", up}, {"out", out}});
  if (out.numel() > 0) table.glu(activation, gate, up, out, stream);
}

void glu_backward(Activation activation, const TensorView& dout, const TensorView& gate,
                  const TensorView& up, const TensorView& dgate, const TensorView& dup,
                  Stream stream) {
  const OpsTable& table = check_elementwise(
      "glu_backward", {{"dout", dout}, {"gate", gate}, {"up", up}, {"dgate", dgate}, {"dup", dup}});
  if (dout.numel() > 0) table.glu_backward(activation, dout, gate, up, dgate, dup, stream);
}

void softcap(const TensorView& x, float cap, const TensorView& y, Stream stream) {
  check(cap > 0.0f, "[softcap] cap ({}) must be positive", cap);
  const OpsTable& table = check_elementwise("softcap", {{"x", x}, {"y", y}});
  if (y.numel() > 0) table.softcap(x, cap, y, stream);
}

void softcap_backward(const TensorView& dy, const TensorView& x, float cap, const TensorView& dx,
                      Stream stream) {
  check(cap > 0.0f, "[softcap_backward] cap ({}) must be positive", cap);
  const OpsTable& table = check_elementwise("softcap_backward", {{"dy", dy}, {"x", x}, {"dx", dx}});
  if (dx.numel() > 0) table.softcap_backward(dy, x, cap, dx, stream);
}

void add(const TensorView& a, const TensorView& b, const TensorView& out, Stream stream) {
  const OpsTable& table = check_elementwise("add", {{"a", a}, {"b", b}, {"out", out}});
  if (out.numel() > 0) table.add(a, b, out, stream);
}

namespace {

const OpsTable& check_rotary(std::string_view function, const Named& x, const RotaryTables& tables,
                             const TensorView& positions, const Named& y) {
  require_floating(function, {x, y});
  require_rows(function, {x, y});
  require_shape(function, y, x.view.shape);
  const int rank = x.view.rank();
  check(rank == 3 || rank == 4,
        "[{}] {} must be [batch,seqlen,num_heads,head_dim] or [total,num_heads,head_dim]; got {}",
        function, x.name, x.view);
  require_dtype(function, {"cos", tables.cos}, DType::float32);
  require_dtype(function, {"sin", tables.sin}, DType::float32);
  check(tables.cos.rank() == 2, "[{}] cos must be [num_positions,rotary_dim/2]; got {}", function,
        tables.cos);
  require_shape(function, {"sin", tables.sin}, tables.cos.shape);
  require_contiguous(function, {"cos", tables.cos});
  require_contiguous(function, {"sin", tables.sin});
  check(2 * tables.cos.size(1) <= x.view.size(-1),
        "[{}] rotary_dim ({}) must not exceed head_dim ({}); got {} {} and cos {}", function,
        2 * tables.cos.size(1), x.view.size(-1), x.name, x.view, tables.cos);
  require_dtype(function, {"positions", positions}, DType::int32);
  Shape tokens{x.view.size(0)};
  if (rank == 4) tokens = Shape{x.view.size(0), x.view.size(1)};
  require_shape(function, {"positions", positions}, tokens);
  require_contiguous(function, {"positions", positions});
  return backend(function,
                 {x, {"cos", tables.cos}, {"sin", tables.sin}, {"positions", positions}, y});
}

}  // namespace

void rotary(const TensorView& x, const RotaryTables& tables, const TensorView& positions,
            const TensorView& y, Stream stream) {
  const OpsTable& table = check_rotary("rotary", {"x", x}, tables, positions, {"y", y});
  if (x.numel() > 0) table.rotary(x, tables, positions, y, stream);
}

void rotary_backward(const TensorView& dy, const RotaryTables& tables, const TensorView& positions,
                     const TensorView& dx, Stream stream) {
  const OpsTable& table =
      check_rotary("rotary_backward", {"dy", dy}, tables, positions, {"dx", dx});
  if (dy.numel() > 0) table.rotary_backward(dy, tables, positions, dx, stream);
}

}  // namespace flashmha::ops
