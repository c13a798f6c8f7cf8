// The decoder: forward, backward, parameters.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/check.h"
#include "core/format.h"
#include "core/located.h"
#include "core/visit.h"
#include "flashmha/model.h"

namespace flashmha::model {
namespace {

// [batch, seqlen, features] -> [batch * seqlen, features].
TensorView rows(const TensorView& x) {
  return x.reshape({-1, x.size(-1)});
}

// Contiguous on the device: the view itself, which its owner keeps, or a copy.
Tensor lent(const TensorView& view, Device device) {
  if (view.device == device && view.is_contiguous()) return Tensor::adopt(view, nullptr);
  return to_device(view, device);
}

// What embeddings are multiplied by: rounded to the model's dtype, as Transformers does, because
// checkpoints were trained so.
float embedding_scale(const ModelConfig& config) {
  if (!config.scale_embeddings) return 1.0f;
  const double exact = std::sqrt(static_cast<double>(config.attention.hidden_size));
  float scale = 0.0f;
  visit_floating(config.dtype, [&]<class T>(T) {
    scale = static_cast<float>(static_cast<T>(static_cast<float>(exact)));
  });
  return scale;
}

// The last layer uses the tables of an earlier one that rotates in the same way.
void share_rotary(std::vector<DecoderLayer>& layers) {
  nn::MultiHeadAttention& last = *layers.back().self_attn;
  if (!last.rotary) return;
  for (const DecoderLayer& layer : layers) {
    const auto& rotary = layer.self_attn->rotary;
    if (rotary && rotary->config() == last.rotary->config()) {
      last.rotary = rotary;
      return;
    }
  }
}

}  // namespace

CausalLM::CausalLM(const ModelConfig& config) : config_(config) {
  check(config.vocab_size > 0 && config.intermediate_size > 0 && config.num_layers > 0,
        "[CausalLM] vocab_size ({}), intermediate_size ({}) and num_layers ({}) must be positive",
        config.vocab_size, config.intermediate_size, config.num_layers);
  config_.attention = config.attention.resolved();
  for (LayerConfig& layer : config_.layers) {
    if (layer.rotary && layer.rotary->head_dim == 0) {
      layer.rotary->head_dim = config_.attention.head_dim;
    }
  }
  embedding_scale_ = embedding_scale(config_);
  const std::int64_t hidden_size = config_.attention.hidden_size;
  embed_tokens_.value =
      Tensor::zeros({config.vocab_size, hidden_size}, config.dtype, config.device);
  for (std::int64_t index = 0; index < config.num_layers; ++index) {
    layers_.emplace_back(config_, index);
    share_rotary(layers_);
  }
  norm_ = nn::RMSNorm(hidden_size, config.rms_norm, config.dtype, config.device);
  if (!config.tie_word_embeddings) {
    lm_head_.value = Tensor::zeros({config.vocab_size, hidden_size}, config.dtype, config.device);
  }
}

Tensor CausalLM::forward(const ModelInputs& inputs, Saved* saved) const {
  check_inputs(inputs);
  Tensor logits = Tensor::empty(logits_shape(inputs), config_.dtype, config_.device);
  forward_into(inputs, logits, saved);
  return logits;
}

void CausalLM::forward_into(const ModelInputs& inputs, const TensorView& logits,
                            Saved* saved) const {
  check_inputs(inputs);
  check(!saved || (!inputs.caches && !inputs.last_logits_only),
        "[CausalLM.forward] a forward with caches or last_logits_only has no backward");
  check(logits.shape == logits_shape(inputs) && logits.dtype == config_.dtype &&
            logits.device == config_.device && logits.is_contiguous(),
        "[CausalLM.forward_into] logits must be contiguous {} {} on {}; got {}",
        dtype_name(config_.dtype), logits_shape(inputs), device_name(config_.device), logits);
  const std::int64_t batch = inputs.input_ids.size(0);
  const std::int64_t seqlen = inputs.input_ids.size(1);
  const std::int64_t hidden_size = config_.attention.hidden_size;

  Tensor x = Tensor::empty({batch, seqlen, hidden_size}, config_.dtype, config_.device);
  DeviceInputs local;
  DeviceInputs& integers = saved ? saved->inputs : local;
  integers = on_device(inputs);
  ops::embedding(embed_tokens_.value, integers.input_ids, x, embedding_scale_);
  if (saved) {
    saved->layers.clear();
    saved->layers.resize(layers_.size());
  }
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    const nn::AttentionInputs own = attention_inputs(inputs, integers, layer);
    DecoderLayer::Saved* kept = saved ? &saved->layers[layer] : nullptr;
    if (kept && inputs.recompute) {
      kept->x = std::move(x);
      x = layers_[layer].forward(lent(kept->x, config_.device), own, nullptr);
    } else {
      x = layers_[layer].forward(std::move(x), own, kept);
    }
  }

  const TensorView last =
      inputs.last_logits_only ? x.view().slice(1, seqlen - 1, seqlen) : x.view();
  const Tensor normed = norm_.forward(last, saved ? &saved->norm : nullptr);
  ops::matmul(rows(normed), head().value.view().transpose(0, 1), rows(logits));
  if (saved) saved->x = std::move(x);
  if (config_.logits_softcap > 0.0f) {
    if (saved) saved->logits = clone(logits);
    ops::softcap(logits, config_.logits_softcap, logits);
  }
}

void CausalLM::backward(const TensorView& dlogits, const ModelInputs& inputs, Saved&& saved) {
  const std::int64_t batch = inputs.input_ids.size(0);
  const std::int64_t seqlen = inputs.input_ids.size(1);
  check(dlogits.shape == Shape({batch, seqlen, config_.vocab_size}) && dlogits.is_contiguous(),
        "[CausalLM.backward] dlogits must be contiguous [{},{},{}], as the logits; got {}", batch,
        seqlen, config_.vocab_size, dlogits);
  check(saved.layers.size() == layers_.size() && saved.x.defined(),
        "[CausalLM.backward] saved must come from a forward of this model, and serves once");

  Tensor dx = Tensor::empty(saved.x.shape(), config_.dtype, config_.device);
  {
    TensorView dhead = dlogits;  // gradient of what the head gave
    if (config_.logits_softcap > 0.0f) {
      dhead = saved.logits;
      ops::softcap_backward(dlogits, saved.logits, config_.logits_softcap, dhead);
    }
    nn::Parameter& weight = config_.tie_word_embeddings ? embed_tokens_ : lm_head_;
    const Tensor normed = norm_.forward(saved.x);
    ops::matmul(rows(dhead).transpose(0, 1), rows(normed), weight.gradient_sum(), {.beta = 1.0f});
    ops::matmul(rows(dhead), weight.value, rows(dx));
    dx = norm_.backward(dx, saved.x, saved.norm);
    saved.x = Tensor();
    saved.logits = Tensor();
  }
  for (std::size_t layer = layers_.size(); layer-- > 0; saved.layers.pop_back()) {
    const nn::AttentionInputs own = attention_inputs(inputs, saved.inputs, layer);
    DecoderLayer::Saved& kept = saved.layers[layer];
    if (!kept.y.defined()) layers_[layer].forward(std::move(kept.x), own, &kept);  // recompute
    dx = layers_[layer].backward(dx, own, kept);
  }
  ops::embedding_backward(dx, saved.inputs.input_ids, embed_tokens_.gradient_sum(),
                          embedding_scale_);
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

Shape CausalLM::logits_shape(const ModelInputs& inputs) const {
  const std::int64_t seqlen = inputs.last_logits_only ? 1 : inputs.input_ids.size(1);
  return {inputs.input_ids.size(0), seqlen, config_.vocab_size};
}

void CausalLM::check_inputs(const ModelInputs& inputs) const {
  const TensorView& ids = inputs.input_ids;
  check(ids.rank() == 2 && (ids.dtype == DType::int32 || ids.dtype == DType::int64) &&
            ids.numel() > 0,
        "[CausalLM.forward] input_ids must be int32 or int64 [batch, seqlen], not empty; got {}",
        ids);
  check(!inputs.caches || inputs.caches->layers.size() == layers_.size(),
        "[CausalLM.forward] there must be a cache for each of the {} layers; got {}",
        layers_.size(), inputs.caches ? inputs.caches->layers.size() : 0);
  check(!inputs.decode || inputs.caches, "[CausalLM.forward] decode needs caches");
}

CausalLM::DeviceInputs CausalLM::on_device(const ModelInputs& inputs) const {
  DeviceInputs result;
  result.input_ids = lent(inputs.input_ids, config_.device);
  if (config_.device.type == DeviceType::cpu) return result;
  const std::int64_t batch = inputs.input_ids.size(0);
  const std::int64_t seqlen = inputs.input_ids.size(1);
  const std::int64_t past = inputs.caches ? inputs.caches->seqlen() : 0;
  Tensor positions;
  if (inputs.position_ids.defined() && inputs.num_positions > 0) {
    result.num_positions = inputs.num_positions;
    result.position_ids = lent(inputs.position_ids, config_.device);
  } else if (inputs.position_ids.defined()) {
    positions = to_device(inputs.position_ids, {});
  } else if (inputs.packed) {
    positions = packed_positions(*inputs.packed, batch, seqlen);
  } else if (inputs.attention_mask.defined() && inputs.attention_mask.size(1) == past + seqlen) {
    positions = positions_from_mask(inputs.attention_mask, seqlen);
  }
  if (positions.defined()) {
    const auto* begin = positions.as<std::int32_t>();
    result.num_positions = 1 + *std::max_element(begin, begin + positions.numel());
    result.position_ids = to_device(positions, config_.device);
  }
  if (inputs.packed) {
    result.packed.emplace(
        PackedSequences{.cu_seqlens = to_device(inputs.packed->cu_seqlens, config_.device),
                        .max_seqlen = std::max(inputs.packed->max_seqlen, result.num_positions)});
  }
  return result;
}

nn::AttentionInputs CausalLM::attention_inputs(const ModelInputs& inputs,
                                               const DeviceInputs& on_device,
                                               std::size_t layer) const {
  const bool has_positions = on_device.position_ids.defined();
  return {.attention_mask = inputs.attention_mask,
          .position_ids = has_positions ? on_device.position_ids.view() : inputs.position_ids,
          .num_positions = has_positions ? on_device.num_positions : inputs.num_positions,
          .packed = on_device.packed ? &*on_device.packed : inputs.packed,
          .cache = inputs.caches ? inputs.caches->layers[layer].get() : nullptr,
          .decode = inputs.decode,
          .training = inputs.training,
          .dropout_seed = inputs.dropout_seed,
          .dropout_offset = inputs.dropout_offset};
}

}  // namespace flashmha::model
