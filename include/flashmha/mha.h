// Multi-head attention layers: MultiHeadAttention materialises the scores and is what
// FlashMultiHeadAttention is compared with. Both have the same parameters and the same five steps,
//
//   project -> (q/k norm) -> rotary -> cache -> attention -> output projection
//
// in [batch, seqlen, num_heads, head_dim] from the first to the last: nothing is ever transposed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "flashmha/kv_cache.h"
#include "flashmha/layers.h"
#include "flashmha/padding.h"
#include "flashmha/plain_attention.h"
#include "flashmha/rotary.h"

namespace flashmha::nn {

struct AttentionConfig {
  std::int64_t hidden_size = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;  // 0: num_heads
  std::int64_t head_dim = 0;      // 0: hidden_size / num_heads
  bool qkv_bias = false;
  bool out_bias = false;
  bool qk_norm = false;  // RMSNorm of every head of q and k, before rotary
  ops::RMSNormOptions qk_norm_options{};
  std::optional<float> softmax_scale;  // default 1 / sqrt(head_dim)
  bool causal = true;
  std::int64_t sliding_window = 0;  // keys that a token sees, itself included; 0: all
  float softcap = 0.0f;
  bool sinks = false;                  // a trainable logit per head in the denominator
  float dropout = 0.0f;                // of attention probabilities, in training only
  std::optional<RotaryConfig> rotary;  // its head_dim may be left 0
  std::int64_t layer_index = 0;        // layers of one model draw different dropout masks

  // The same with the zeros filled in; throws invalid_argument if the numbers do not fit together.
  AttentionConfig resolved() const;
};

// One call of an attention layer. Masks, positions and lengths may be on the host also if the layer
// is on a GPU; what its kernels read is copied there, each time.
struct AttentionInputs {
  TensorView hidden_states = {};  // [batch, seqlen, hidden_size]
  // [batch, length], non-zero = real token. With a cache, length counts the cached tokens too. Of a
  // mask that is longer than the keys the last columns count; keys beyond a shorter one are
  // ignored.
  TensorView attention_mask = {};
  // int32 [batch, seqlen]: rotary positions. Default: the number of real tokens before (by the
  // mask, the packed sequences, and the cache's length).
  TensorView position_ids = {};
  // All position_ids are below it. 0: they are looked at, which on a GPU means to wait for them.
  std::int64_t num_positions = 0;
  const PackedSequences* packed = nullptr;  // not together with a mask or a cache
  // [batch, seqlen_k, hidden_size]: keys and values come from here (cross-attention: not causal, no
  // rotary, no cache; the mask is theirs).
  TensorView encoder_states;
  KVCache* cache = nullptr;
  // With a cache that gives out its memory: the one new token of every row is written behind its
  // cache_seqlens and attends to what is there. position_ids and num_positions must be given,
  // masks not; the cache's seqlen is left to the caller (KVCache::advance). Flash layer only.
  const DecodeStep* decode = nullptr;
  std::optional<bool> causal;  // overrides the config's
  bool training = false;       // dropout is applied
  std::uint64_t dropout_seed = 0;
  std::uint64_t dropout_offset = 0;  // different in every step; layers differ by their index
  bool deterministic = false;        // also set by FLASHMHA_DETERMINISTIC=1 in the environment
  // Materialised probabilities in AttentionSaved::plain: MultiHeadAttention only; the flash layer,
  // which never has them, throws.
  bool return_probabilities = false;
};

// What an attention layer keeps for its backward.
struct AttentionSaved {
  Tensor q, k, v;       // [batch, seqlen, num_heads, head_dim] as attention saw them
  Tensor q_raw, k_raw;  // before the q/k norm; defined only with it
  RMSNorm::Saved q_norm, k_norm;
  Tensor positions;                // int32 [batch, seqlen]; defined only with rotary
  std::int64_t num_positions = 0;  // all positions are below it
  TensorView attended;  // [batch, seqlen, num_heads, head_dim]: lives in one of the next two
  FlashAttentionMixin::Result flash;  // FlashMultiHeadAttention
  PlainAttentionResult plain;         // MultiHeadAttention
};

struct AttentionLayerGradients {
  Tensor hidden_states;   // [batch, seqlen, hidden_size]
  Tensor encoder_states;  // [batch, seqlen_k, hidden_size]; defined with encoder_states
};

// The plain layer: softmax(q k^T) as a matrix in memory.
class MultiHeadAttention {
 public:
  AttentionConfig config;
  Linear q_proj;                            // [num_heads * head_dim, hidden_size]
  Linear k_proj;                            // [num_kv_heads * head_dim, hidden_size]
  Linear v_proj;                            // [num_kv_heads * head_dim, hidden_size]
  Linear o_proj;                            // [hidden_size, num_heads * head_dim]
  RMSNorm q_norm;                           // [head_dim]; defined with config.qk_norm
  RMSNorm k_norm;                           // [head_dim]
  Parameter sinks;                          // [num_heads]; defined with config.sinks
  std::shared_ptr<RotaryEmbedding> rotary;  // null: no rotation. Layers may share one

  // Zero weights, unit norms. Throws invalid_argument for a config that does not fit together.
  MultiHeadAttention(const AttentionConfig& config, DType dtype, Device device = {});
  virtual ~MultiHeadAttention() = default;
  MultiHeadAttention(MultiHeadAttention&&) = default;
  MultiHeadAttention& operator=(MultiHeadAttention&&) = default;

  // [batch, seqlen, hidden_size]. The cache, if one is given, has grown by seqlen tokens.
  Tensor forward(const AttentionInputs& inputs, AttentionSaved* saved = nullptr) const;

  // inputs must equal the forward's. Refused with a cache.
  AttentionLayerGradients backward(const TensorView& dout, const AttentionInputs& inputs,
                                   const AttentionSaved& saved);

  void visit(const std::string& prefix, const ParameterVisitor& visitor);

 protected:
  // Step four: attention of q [batch, seqlen_q, num_heads, head_dim] to the keys. The result has
  // q's shape and lives in `saved`.
  virtual TensorView attend(const TensorView& q, const CachedKeys& keys,
                            const AttentionInputs& inputs, AttentionSaved& saved) const;
  // Steps two to four of a decode step: keys are appended, queries and keys rotated, in one call.
  virtual TensorView attend_decode(const AttentionInputs& inputs, AttentionSaved& saved) const;
  // dq, dk, dv and dsinks, given the gradient of attend's result.
  virtual AttentionGradients attend_backward(const TensorView& dout, const AttentionInputs& inputs,
                                             const AttentionSaved& saved) const;

  // The options of step four for this call.
  AttentionOptions attention_options(const AttentionInputs& inputs) const;

 private:
  void check_inputs(const AttentionInputs& inputs, const AttentionSaved* saved) const;
  void project(const AttentionInputs& inputs, AttentionSaved& saved) const;
  void rotate(const AttentionInputs& inputs, AttentionSaved& saved) const;
};

// The same layer through the FlashAttention API: memory linear in the sequence.
class FlashMultiHeadAttention : public MultiHeadAttention {
 public:
  using MultiHeadAttention::MultiHeadAttention;

 protected:
  TensorView attend(const TensorView& q, const CachedKeys& keys, const AttentionInputs& inputs,
                    AttentionSaved& saved) const override;
  TensorView attend_decode(const AttentionInputs& inputs, AttentionSaved& saved) const override;
  AttentionGradients attend_backward(const TensorView& dout, const AttentionInputs& inputs,
                                     const AttentionSaved& saved) const override;
};

}  // namespace flashmha::nn
