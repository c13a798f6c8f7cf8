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

// Rotary positions on the layer's device.
struct Positions {
  Tensor values;           // int32 [batch, seqlen]
  std::int64_t bound = 1;  // all values are below it
};

// Of values that the host can look at.
Positions looked_up(const TensorView& values, Device device) {
  const Located host(values);
  const Tensor contiguous = clone(host);
  const auto* begin = contiguous.as<std::int32_t>();
  const std::int64_t count = contiguous.numel();
  return {.values = to_device(contiguous, device),
          .bound = count == 0 ? 1 : 1 + *std::max_element(begin, begin + count)};
}

// What rotary uses: the given positions, or how many real tokens come before.
Positions logical_positions(const AttentionInputs& inputs, RotaryEmbedding& rotary) {
  const Device device = inputs.hidden_states.device;
  const std::int64_t batch = inputs.hidden_states.size(0);
  const std::int64_t seqlen = inputs.hidden_states.size(1);
  const std::int64_t past = inputs.cache ? inputs.cache->seqlen() : 0;
  if (inputs.position_ids.defined() && inputs.num_positions > 0) {
    return {to_device(inputs.position_ids, device), inputs.num_positions};
  }
  if (inputs.position_ids.defined()) return looked_up(inputs.position_ids, device);
  if (inputs.packed) return looked_up(packed_positions(*inputs.packed, batch, seqlen), device);
  if (inputs.attention_mask.defined()) {
    check(inputs.attention_mask.size(1) == past + seqlen,
          "[MultiHeadAttention] without position_ids, attention_mask must cover the {} cached and "
          "the {} new tokens; got {}",
          past, seqlen, inputs.attention_mask);
    return looked_up(positions_from_mask(inputs.attention_mask, seqlen), device);
  }
  const std::int64_t bound = std::max<std::int64_t>(1, past + seqlen);
  rotary.tables(bound);
  const TensorView row = rotary.row_numbers().slice(0, past, past + seqlen);
  return {clone(row.broadcast_to({batch, seqlen})), bound};
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
  check(!inputs.decode || (inputs.cache && x.size(1) == 1 && !mask.defined() &&
                           (!config.rotary || (ids.defined() && inputs.num_positions > 0))),
        "[MultiHeadAttention] a decode step has one token a row, a cache, no mask, and with rotary "
        "position_ids and num_positions; got hidden_states {}, mask {}, position_ids {}",
        x, mask, ids);
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
  auto [positions, bound] = logical_positions(inputs, *rotary);
  saved.positions = std::move(positions);
  saved.num_positions = bound;
  const ops::RotaryTables tables = rotary->tables(bound);
  ops::rotary(saved.q, tables, saved.positions, saved.q);
  ops::rotary(saved.k, tables, saved.positions, saved.k);
}

Tensor MultiHeadAttention::forward(const AttentionInputs& inputs, AttentionSaved* keep) const {
  check_inputs(inputs, keep);
  AttentionSaved local;
  AttentionSaved& saved = keep ? *keep : local;
  project(inputs, saved);
  if (inputs.decode) {
    saved.attended = attend_decode(inputs, saved);
    return o_proj.forward(as_features(saved.attended));
  }
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

TensorView MultiHeadAttention::attend_decode(const AttentionInputs&, AttentionSaved&) const {
  fail(ErrorCode::unsupported,
       "[MultiHeadAttention] decode steps on the device are FlashMultiHeadAttention's");
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
    const ops::RotaryTables tables = rotary->tables(saved.num_positions);
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
