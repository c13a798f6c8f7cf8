// The decoder: forward, backward, parameters.
#include <string>
#include <utility>

#include "core/check.h"
#include "flashmha/model.h"

namespace flashmha::model {
namespace {

std::unique_ptr<nn::MultiHeadAttention> make_attention(const ModelConfig& config,
                                                       std::int64_t index) {
  nn::AttentionConfig attention = config.attention;
  attention.layer_index = index;
  if (config.attention_kind == AttentionKind::plain) {
    return std::make_unique<nn::MultiHeadAttention>(attention, config.dtype, config.device);
  }
  return std::make_unique<nn::FlashMultiHeadAttention>(attention, config.dtype, config.device);
}

// [batch, seqlen, features] -> [batch * seqlen, features].
TensorView rows(const TensorView& x) {
  return x.reshape({-1, x.size(-1)});
}

}  // namespace

std::string_view attention_kind_name(AttentionKind kind) {
  return kind == AttentionKind::plain ? "plain" : "flash";
}

ModelConfig default_config() {
  ModelConfig config{.vocab_size = 2048, .intermediate_size = 1376, .num_layers = 4};
  config.attention.hidden_size = 512;
  config.attention.num_heads = 8;
  config.attention.num_kv_heads = 8;
  config.attention.head_dim = 64;
  config.attention.rotary = nn::RotaryConfig{};
  return config;
}

// ---- one layer ---------------------------------------------------------------------------------

DecoderLayer::DecoderLayer(const ModelConfig& config, std::int64_t index)
    : input_layernorm(config.attention.hidden_size, config.rms_norm_eps, config.dtype,
                      config.device),
      self_attn(make_attention(config, index)),
      post_attention_layernorm(config.attention.hidden_size, config.rms_norm_eps, config.dtype,
                               config.device),
      mlp(config.attention.hidden_size, config.intermediate_size, /*with_bias=*/false, config.dtype,
          config.device) {}

Tensor DecoderLayer::forward(Tensor x, nn::AttentionInputs inputs, Saved* saved) const {
  Tensor normed = input_layernorm.forward(x, saved ? &saved->input_norm : nullptr);
  inputs.hidden_states = normed;
  Tensor y = self_attn->forward(inputs, saved ? &saved->attention : nullptr);
  ops::add(y, x, y);
  normed = post_attention_layernorm.forward(y, saved ? &saved->post_attention_norm : nullptr);
  Tensor out = mlp.forward(normed, saved ? &saved->mlp : nullptr);
  ops::add(out, y, out);
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
    const Tensor normed = post_attention_layernorm.forward(saved.y);
    const Tensor dnormed = mlp.backward(dout, normed, saved.mlp);
    dy = post_attention_layernorm.backward(dnormed, saved.y, saved.post_attention_norm);
    ops::add(dy, dout, dy);
  }
  const Tensor normed = input_layernorm.forward(saved.x);
  inputs.hidden_states = normed;
  const Tensor dnormed = self_attn->backward(dy, inputs, saved.attention).hidden_states;
  Tensor dx = input_layernorm.backward(dnormed, saved.x, saved.input_norm);
  ops::add(dx, dy, dx);
  return dx;
}

void DecoderLayer::visit(const std::string& prefix, const nn::ParameterVisitor& visitor) {
  input_layernorm.visit(prefix + "input_layernorm.", visitor);
  self_attn->visit(prefix + "self_attn.", visitor);
  post_attention_layernorm.visit(prefix + "post_attention_layernorm.", visitor);
  mlp.visit(prefix + "mlp.", visitor);
}

// ---- the model ---------------------------------------------------------------------------------

CausalLM::CausalLM(const ModelConfig& config) : config_(config) {
  check(config.vocab_size > 0 && config.intermediate_size > 0 && config.num_layers > 0,
        "[CausalLM] vocab_size ({}), intermediate_size ({}) and num_layers ({}) must be positive",
        config.vocab_size, config.intermediate_size, config.num_layers);
  config_.attention = config.attention.resolved();
  const std::int64_t hidden_size = config_.attention.hidden_size;
  embed_tokens_.value =
      Tensor::zeros({config.vocab_size, hidden_size}, config.dtype, config.device);
  for (std::int64_t index = 0; index < config.num_layers; ++index) {
    layers_.emplace_back(config_, index);
    layers_.back().self_attn->rotary = layers_.front().self_attn->rotary;
  }
  norm_ = nn::RMSNorm(hidden_size, config.rms_norm_eps, config.dtype, config.device);
  if (!config.tie_word_embeddings) {
    lm_head_.value = Tensor::zeros({config.vocab_size, hidden_size}, config.dtype, config.device);
  }
}

Tensor CausalLM::forward(const ModelInputs& inputs, Saved* saved) const {
  check_inputs(inputs);
  check(!saved || (!inputs.caches && !inputs.last_logits_only),
        "[CausalLM.forward] a forward with caches or last_logits_only has no backward");
  const std::int64_t batch = inputs.input_ids.size(0);
  const std::int64_t seqlen = inputs.input_ids.size(1);
  const std::int64_t hidden_size = config_.attention.hidden_size;

  Tensor x = Tensor::empty({batch, seqlen, hidden_size}, config_.dtype, config_.device);
  ops::embedding(embed_tokens_.value, clone(inputs.input_ids), x);
  if (saved) {
    saved->layers.clear();
    saved->layers.resize(layers_.size());
  }
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    x = layers_[layer].forward(std::move(x), attention_inputs(inputs, layer),
                               saved ? &saved->layers[layer] : nullptr);
  }

  const TensorView last =
      inputs.last_logits_only ? x.view().slice(1, seqlen - 1, seqlen) : x.view();
  const Tensor normed = norm_.forward(last, saved ? &saved->norm : nullptr);
  Tensor logits =
      Tensor::empty({batch, last.size(1), config_.vocab_size}, config_.dtype, config_.device);
  ops::matmul(rows(normed), head().value.view().transpose(0, 1), rows(logits));
  if (saved) saved->x = std::move(x);
  return logits;
}

void CausalLM::backward(const TensorView& dlogits, const ModelInputs& inputs, Saved&& saved) {
  const std::int64_t batch = inputs.input_ids.size(0);
  const std::int64_t seqlen = inputs.input_ids.size(1);
  check(dlogits.shape == Shape({batch, seqlen, config_.vocab_size}) && dlogits.is_contiguous(),
        "[CausalLM.backward] dlogits must be contiguous [{},{},{}], as the logits; got {}", batch,
        seqlen, config_.vocab_size, to_string(dlogits));
  check(saved.layers.size() == layers_.size() && saved.x.defined(),
        "[CausalLM.backward] saved must come from a forward of this model, and serves once");

  Tensor dx = Tensor::empty(saved.x.shape(), config_.dtype, config_.device);
  {
    nn::Parameter& weight = config_.tie_word_embeddings ? embed_tokens_ : lm_head_;
    const Tensor normed = norm_.forward(saved.x);
    ops::matmul(rows(dlogits).transpose(0, 1), rows(normed), weight.gradient_sum(), {.beta = 1.0f});
    ops::matmul(rows(dlogits), weight.value, rows(dx));
    dx = norm_.backward(dx, saved.x, saved.norm);
    saved.x = Tensor();
  }
  for (std::size_t layer = layers_.size(); layer-- > 0; saved.layers.pop_back()) {
    dx = layers_[layer].backward(dx, attention_inputs(inputs, layer), saved.layers[layer]);
  }
  ops::embedding_backward(dx, clone(inputs.input_ids), embed_tokens_.gradient_sum());
}

void CausalLM::visit(const nn::ParameterVisitor& visitor) {
  visitor("model.embed_tokens.weight", embed_tokens_);
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    layers_[layer].visit("model.layers." + std::to_string(layer) + ".", visitor);
  }
  norm_.visit("model.norm.", visitor);
  if (lm_head_.defined()) visitor("lm_head.weight", lm_head_);
}

void CausalLM::zero_gradients() {
  visit([](const std::string&, nn::Parameter& parameter) { parameter.zero_gradient(); });
}

std::int64_t CausalLM::num_parameters() {
  std::int64_t count = 0;
  visit([&](const std::string&, nn::Parameter& parameter) { count += parameter.value.numel(); });
  return count;
}

void CausalLM::check_inputs(const ModelInputs& inputs) const {
  const TensorView& ids = inputs.input_ids;
  check(ids.rank() == 2 && (ids.dtype == DType::int32 || ids.dtype == DType::int64) &&
            ids.numel() > 0,
        "[CausalLM.forward] input_ids must be int32 or int64 [batch, seqlen], not empty; got {}",
        to_string(ids));
  check(!inputs.caches || inputs.caches->layers.size() == layers_.size(),
        "[CausalLM.forward] there must be a cache for each of the {} layers; got {}",
        layers_.size(), inputs.caches ? inputs.caches->layers.size() : 0);
}

nn::AttentionInputs CausalLM::attention_inputs(const ModelInputs& inputs, std::size_t layer) const {
  return {.attention_mask = inputs.attention_mask,
          .position_ids = inputs.position_ids,
          .packed = inputs.packed,
          .cache = inputs.caches ? inputs.caches->layers[layer].get() : nullptr,
          .training = inputs.training,
          .dropout_seed = inputs.dropout_seed,
          .dropout_offset = inputs.dropout_offset};
}

}  // namespace flashmha::model
