// The five steps that both attention layers share. Step four is in attend_plain.cpp and
// attend_flash.cpp.
#include "flashmha/mha.h"

#include <algorithm>

#include "flashmha/ops.h"
#include "nn/host.h"

namespace flashmha::nn {
namespace {

// [batch, seqlen, num_heads * head_dim] -> [batch, seqlen, num_heads, head_dim].
Tensor as_heads(Tensor x, std::int64_t head_dim) {
  const Shape shape{x.size(0), x.size(1), x.size(2) / head_dim, head_dim};
  return reshaped(std::move(x), shape);
}

TensorView as_features(const TensorView& x) {
  return x.reshape({x.size(0), x.size(1), x.size(2) * x.size(3)});
}

// Positions inside each packed sequence.
Tensor packed_positions(const PackedSequences& packed, std::int64_t batch, std::int64_t seqlen) {
  Tensor positions = Tensor::zeros({batch, seqlen}, DType::int32);
  const auto* starts = packed.cu_seqlens.as<std::int32_t>();
  for (std::int64_t s = 0; s + 1 < packed.cu_seqlens.size(0); ++s) {
    check(starts[s + 1] <= batch * seqlen,
          "[MultiHeadAttention] packed.cu_seqlens must stay within the {} tokens of "
          "hidden_states; got {}",
          batch * seqlen, starts[s + 1]);
    for (std::int32_t i = starts[s]; i < starts[s + 1]; ++i) {
      positions.as<std::int32_t>()[i] = i - starts[s];
    }
  }
  return positions;
}

// What rotary uses: the given positions, or how many real tokens come before.
Tensor logical_positions(const AttentionInputs& inputs) {
  const std::int64_t batch = inputs.hidden_states.size(0);
  const std::int64_t seqlen = inputs.hidden_states.size(1);
  if (inputs.position_ids.defined()) return clone(inputs.position_ids);
  if (inputs.packed) return packed_positions(*inputs.packed, batch, seqlen);
  const std::int64_t past = inputs.cache ? inputs.cache->seqlen() : 0;
  if (inputs.attention_mask.defined()) {
    check(inputs.attention_mask.size(1) == past + seqlen,
          "[MultiHeadAttention] without position_ids, attention_mask must cover the {} cached and "
          "the {} new tokens; got {}",
          past, seqlen, inputs.attention_mask);
    return positions_from_mask(inputs.attention_mask, seqlen);
  }
  Tensor positions = Tensor::empty({batch, seqlen}, DType::int32);
  for (std::int64_t i = 0; i < batch * seqlen; ++i) {
    positions.as<std::int32_t>()[i] = static_cast<std::int32_t>(past + i % seqlen);
  }
  return positions;
}

std::int64_t positions_used(const TensorView& positions) {
  const auto* begin = positions.as<std::int32_t>();
  return positions.numel() == 0 ? 1 : 1 + *std::max_element(begin, begin + positions.numel());
}

// A cache may have dropped keys only if no query of this call can see them.
void check_window(const CachedKeys& keys, const KVCache& cache, std::int64_t seqlen_q,
                  std::int64_t window_left) {
  const bool dropped = keys.seqlen < cache.seqlen();
  check(!dropped || (window_left >= 0 && keys.seqlen - seqlen_q >= window_left),
        "[MultiHeadAttention] the cache holds {} of {} keys, but this layer's {} queries see {}: "
        "its sliding window must fit the cache's",
        keys.seqlen, cache.seqlen(), seqlen_q, window_left < 0 ? "all of them" : "more");
}

}  // namespace

MultiHeadAttention::MultiHeadAttention(const AttentionConfig& given, DType dtype, Device device)
    : config(given.resolved()) {
  const std::int64_t q_size = config.num_heads * config.head_dim;
  const std::int64_t kv_size = config.num_kv_heads * config.head_dim;
  q_proj = Linear(config.hidden_size, q_size, config.qkv_bias, dtype, device);
  k_proj = Linear(config.hidden_size, kv_size, config.qkv_bias, dtype, device);
  v_proj = Linear(config.hidden_size, kv_size, config.qkv_bias, dtype, device);
  o_proj = Linear(q_size, config.hidden_size, config.out_bias, dtype, device);
  if (config.qk_norm) {
    q_norm = RMSNorm(config.head_dim, config.qk_norm_options, dtype, device);
    k_norm = RMSNorm(config.head_dim, config.qk_norm_options, dtype, device);
  }
  if (config.sinks) sinks.value = Tensor::zeros({config.num_heads}, dtype, device);
  if (config.rotary) rotary = std::make_shared<RotaryEmbedding>(*config.rotary, device);
}

void MultiHeadAttention::check_inputs(const AttentionInputs& inputs,
                                      const AttentionSaved* saved) const {
  const TensorView& x = inputs.hidden_states;
  check(x.rank() == 3 && x.size(2) == config.hidden_size,
        "[MultiHeadAttention] hidden_states must be [batch,seqlen,{}]; got {}", config.hidden_size,
        x);
  check(x.dtype == q_proj.weight.value.dtype(),
        "[MultiHeadAttention] hidden_states must be {} as the weights are; got {}",
        dtype_name(q_proj.weight.value.dtype()), x);
  const TensorView& mask = inputs.attention_mask;
  check(!mask.defined() || (mask.rank() == 2 && mask.size(0) == x.size(0)),
        "[MultiHeadAttention] attention_mask must be [{},length]; got {}", x.size(0), mask);
  const TensorView& ids = inputs.position_ids;
  check(!ids.defined() || (ids.dtype == DType::int32 && ids.rank() == 2 &&
                           ids.size(0) == x.size(0) && ids.size(1) == x.size(1)),
        "[MultiHeadAttention] position_ids must be int32 [{},{}]; got {}", x.size(0), x.size(1),
        ids);
  check(!inputs.packed || (!mask.defined() && !inputs.cache && !inputs.encoder_states.defined()),
        "[MultiHeadAttention] packed sequences exclude a mask, a cache and encoder_states");
  check(!inputs.encoder_states.defined() || !inputs.cache,
        "[MultiHeadAttention] a cache and encoder_states exclude each other");
  const TensorView& encoder = inputs.encoder_states;
  check(!encoder.defined() || (encoder.rank() == 3 && encoder.size(0) == x.size(0) &&
                               encoder.size(2) == config.hidden_size && encoder.dtype == x.dtype),
        "[MultiHeadAttention] encoder_states must be {} [{},seqlen_k,{}]; got {}",
        dtype_name(x.dtype), x.size(0), config.hidden_size, encoder);
  check(!inputs.return_probabilities || saved,
        "[MultiHeadAttention] return_probabilities needs an AttentionSaved to put them into");
}

AttentionOptions MultiHeadAttention::attention_options(const AttentionInputs& inputs) const {
  const bool cross = inputs.encoder_states.defined();
  const bool causal = inputs.causal.value_or(config.causal && !cross);
  const Window window = window_of_length(config.sliding_window, causal);
  AttentionOptions options;
  options.softmax_scale = config.softmax_scale;
  options.causal = causal;
  options.window_left = window.left;
  options.window_right = window.right;
  options.softcap = config.softcap;
  if (inputs.training) {
    options.dropout = {
        .p = config.dropout,
        .seed = inputs.dropout_seed,
        .offset = inputs.dropout_offset + (static_cast<std::uint64_t>(config.layer_index) << 32)};
  }
  if (sinks.defined()) options.sinks = sinks.value;
  options.deterministic = inputs.deterministic;
  return options;
}

void MultiHeadAttention::project(const AttentionInputs& inputs, AttentionSaved& saved) const {
  const TensorView& x = inputs.hidden_states;
  const TensorView& source = inputs.encoder_states.defined() ? inputs.encoder_states : x;
  saved.q = as_heads(q_proj.forward(x), config.head_dim);
  saved.k = as_heads(k_proj.forward(source), config.head_dim);
  saved.v = as_heads(v_proj.forward(source), config.head_dim);
  if (!config.qk_norm) return;
  saved.q_raw = std::move(saved.q);
  saved.k_raw = std::move(saved.k);
  saved.q = q_norm.forward(saved.q_raw, &saved.q_norm);
  saved.k = k_norm.forward(saved.k_raw, &saved.k_norm);
}

void MultiHeadAttention::rotate(const AttentionInputs& inputs, AttentionSaved& saved) const {
  if (!rotary || inputs.encoder_states.defined()) return;
  saved.positions = logical_positions(inputs);
  const ops::RotaryTables tables = rotary->tables(positions_used(saved.positions));
  ops::rotary(saved.q, tables, saved.positions, saved.q);
  ops::rotary(saved.k, tables, saved.positions, saved.k);
}

Tensor MultiHeadAttention::forward(const AttentionInputs& inputs, AttentionSaved* keep) const {
  check_inputs(inputs, keep);
  AttentionSaved local;
  AttentionSaved& saved = keep ? *keep : local;
  project(inputs, saved);
  rotate(inputs, saved);
  const CachedKeys keys = inputs.cache
                              ? inputs.cache->append(saved.k, saved.v)
                              : CachedKeys{.k = saved.k, .v = saved.v, .seqlen = saved.k.size(1)};
  if (inputs.cache) {
    check_window(keys, *inputs.cache, saved.q.size(1), attention_options(inputs).window_left);
  }
  saved.attended = attend(saved.q, keys, inputs, saved);
  return o_proj.forward(as_features(saved.attended));
}

AttentionLayerGradients MultiHeadAttention::backward(const TensorView& dout,
                                                     const AttentionInputs& inputs,
                                                     const AttentionSaved& saved) {
  check(!inputs.cache, "[MultiHeadAttention::backward] is not available with a cache");
  check(saved.attended.defined(), "[MultiHeadAttention::backward] needs what forward saved");
  const Tensor dattended =
      as_heads(o_proj.backward(dout, as_features(saved.attended)), config.head_dim);
  AttentionGradients gradients = attend_backward(dattended, inputs, saved);
  if (sinks.defined()) {
    ops::add(gradients.dsinks, sinks.gradient_sum(), sinks.gradient_sum());
  }
  if (saved.positions.defined()) {
    const ops::RotaryTables tables = rotary->tables(positions_used(saved.positions));
    ops::rotary_backward(gradients.dq, tables, saved.positions, gradients.dq);
    ops::rotary_backward(gradients.dk, tables, saved.positions, gradients.dk);
  }
  if (config.qk_norm) {
    gradients.dq = q_norm.backward(gradients.dq, saved.q_raw, saved.q_norm);
    gradients.dk = k_norm.backward(gradients.dk, saved.k_raw, saved.k_norm);
  }
  AttentionLayerGradients result;
  result.hidden_states = q_proj.backward(as_features(gradients.dq), inputs.hidden_states);
  if (inputs.encoder_states.defined()) {
    result.encoder_states = k_proj.backward(as_features(gradients.dk), inputs.encoder_states);
    v_proj.backward_into(as_features(gradients.dv), inputs.encoder_states, result.encoder_states,
                         true);
  } else {
    k_proj.backward_into(as_features(gradients.dk), inputs.hidden_states, result.hidden_states,
                         true);
    v_proj.backward_into(as_features(gradients.dv), inputs.hidden_states, result.hidden_states,
                         true);
  }
  return result;
}

void MultiHeadAttention::visit(const std::string& prefix, const ParameterVisitor& visitor) {
  q_proj.visit(prefix + "q_proj.", visitor);
  k_proj.visit(prefix + "k_proj.", visitor);
  v_proj.visit(prefix + "v_proj.", visitor);
  o_proj.visit(prefix + "o_proj.", visitor);
  q_norm.visit(prefix + "q_norm.", visitor);
  k_norm.visit(prefix + "k_norm.", visitor);
  if (sinks.defined()) visitor(prefix + "sinks", sinks);
}

}  // namespace flashmha::nn
