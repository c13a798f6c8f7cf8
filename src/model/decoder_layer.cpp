// One layer of the decoder.
#include <string>
#include <utility>

#include "flashmha/model.h"

namespace flashmha::model {
namespace {

std::unique_ptr<nn::MultiHeadAttention> make_attention(const ModelConfig& config,
                                                       std::int64_t index) {
  const nn::AttentionConfig attention = config.attention_config(index);
  if (config.attention_kind == AttentionKind::plain) {
    return std::make_unique<nn::MultiHeadAttention>(attention, config.dtype, config.device);
  }
  return std::make_unique<nn::FlashMultiHeadAttention>(attention, config.dtype, config.device);
}

nn::RMSNorm make_norm(const ModelConfig& config, bool present = true) {
  if (!present) return {};
  return {config.attention.hidden_size, config.rms_norm, config.dtype, config.device};
}

// x + y, or x + norm(y) where there is a norm. y is used up: kept in `output` for the backward of
// its norm, or overwritten.
Tensor add_residual(const TensorView& x, Tensor y, const nn::RMSNorm& norm,
                    nn::RMSNorm::Saved* norm_saved, Tensor* output) {
  if (norm.weight.defined()) {
    Tensor normed = norm.forward(y, norm_saved);
    if (output) *output = std::move(y);
    y = std::move(normed);
  }
  ops::add(y, x, y);
  return y;
}

// The gradient of y in add_residual, given that of the sum.
Tensor output_gradient(const TensorView& dsum, nn::RMSNorm& norm, const nn::RMSNorm::Saved& saved,
                       const Tensor& output) {
  if (!norm.weight.defined()) return {};
  return norm.backward(dsum, output, saved);
}

}  // namespace

DecoderLayer::DecoderLayer(const ModelConfig& config, std::int64_t index)
    : attention_norm(make_norm(config)),
      self_attn(make_attention(config, index)),
      attention_output_norm(make_norm(config, config.sublayer_output_norms)),
      mlp_norm(make_norm(config)),
      mlp(config.attention.hidden_size, config.intermediate_size, config.activation,
          config.mlp_bias, config.dtype, config.device),
      mlp_output_norm(make_norm(config, config.sublayer_output_norms)) {}

Tensor DecoderLayer::forward(Tensor x, nn::AttentionInputs inputs, Saved* saved) const {
  Tensor normed = attention_norm.forward(x, saved ? &saved->attention_norm : nullptr);
  inputs.hidden_states = normed;
  Tensor y = add_residual(x, self_attn->forward(inputs, saved ? &saved->attention : nullptr),
                          attention_output_norm, saved ? &saved->attention_output_norm : nullptr,
                          saved ? &saved->attention_output : nullptr);
  normed = mlp_norm.forward(y, saved ? &saved->mlp_norm : nullptr);
  Tensor out =
      add_residual(y, mlp.forward(normed, saved ? &saved->mlp : nullptr), mlp_output_norm,
                   saved ? &saved->mlp_output_norm : nullptr, saved ? &saved->mlp_output : nullptr);
  if (saved) {
    saved->x = std::move(x);
    saved->y = std::move(y);
  }
  return out;
}

Tensor DecoderLayer::backward(const TensorView& dout, nn::AttentionInputs inputs,
                              const Saved& saved) {
  Tensor dy;
  {
    const Tensor dmlp =
        output_gradient(dout, mlp_output_norm, saved.mlp_output_norm, saved.mlp_output);
    const Tensor normed = mlp_norm.forward(saved.y);
    const Tensor dnormed = mlp.backward(dmlp.defined() ? dmlp.view() : dout, normed, saved.mlp);
    dy = mlp_norm.backward(dnormed, saved.y, saved.mlp_norm);
    ops::add(dy, dout, dy);
  }
  const Tensor dattention = output_gradient(dy, attention_output_norm, saved.attention_output_norm,
                                            saved.attention_output);
  const Tensor normed = attention_norm.forward(saved.x);
  inputs.hidden_states = normed;
  const Tensor dnormed =
      self_attn->backward(dattention.defined() ? dattention : dy, inputs, saved.attention)
          .hidden_states;
  Tensor dx = attention_norm.backward(dnormed, saved.x, saved.attention_norm);
  ops::add(dx, dy, dx);
  return dx;
}

void DecoderLayer::visit(const std::string& prefix, const nn::ParameterVisitor& visitor) {
  attention_norm.visit(prefix + "input_layernorm.", visitor);
  self_attn->visit(prefix + "self_attn.", visitor);
  // post_attention_layernorm is the norm before the MLP, or, where there are four, that of
  // attention's output.
  const bool four = mlp_output_norm.weight.defined();
  attention_output_norm.visit(prefix + "post_attention_layernorm.", visitor);
  mlp_norm.visit(prefix + (four ? "pre_feedforward_layernorm." : "post_attention_layernorm."),
                 visitor);
  mlp.visit(prefix + "mlp.", visitor);
  mlp_output_norm.visit(prefix + "post_feedforward_layernorm.", visitor);
}

}  // namespace flashmha::model
