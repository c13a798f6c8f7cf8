// A Llama-architecture decoder: embedding, layers of RMSNorm + attention + RMSNorm + SwiGLU with
// residuals, a final RMSNorm and a head (Touvron et al. 2023, "LLaMA"). Forward and backward.
//
// Parameters carry Hugging Face's names. hidden = config.attention.hidden_size, q = num_heads *
// head_dim, kv = num_kv_heads * head_dim:
//   model.embed_tokens.weight                                 [vocab_size, hidden]
//   model.layers.N.input_layernorm.weight                     [hidden]
//   model.layers.N.self_attn.q_proj.weight                    [q, hidden]
//   model.layers.N.self_attn.{k,v}_proj.weight                [kv, hidden]
//   model.layers.N.self_attn.o_proj.weight                    [hidden, q]
//   model.layers.N.post_attention_layernorm.weight            [hidden]
//   model.layers.N.mlp.{gate,up}_proj.weight                  [intermediate_size, hidden]
//   model.layers.N.mlp.down_proj.weight                       [hidden, intermediate_size]
//   model.norm.weight                                         [hidden]
//   lm_head.weight                                            [vocab_size, hidden]; not if tied
// and self_attn's biases, q/k norms and sinks where the config has them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flashmha/nn.h"

namespace flashmha::model {

enum class AttentionKind : std::uint8_t {
  plain,  // nn::MultiHeadAttention: scores in memory
  flash,  // nn::FlashMultiHeadAttention
};

// "plain" or "flash".
std::string_view attention_kind_name(AttentionKind kind);

struct ModelConfig {
  std::int64_t vocab_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;
  float initializer_range = 0.02f;  // standard deviation of random weights
  DType dtype = DType::float32;     // of parameters and activations
  Device device{};
  AttentionKind attention_kind = AttentionKind::flash;
  nn::AttentionConfig attention{};  // of every layer; hidden_size, heads, rotary, window, ...
};

// The model of `flashmha benchmark` and `flashmha sanity-check` when no flag says otherwise: small
// enough to train and time on two CPU cores in seconds. 14.7 million parameters.
ModelConfig default_config();

// One call of the model.
struct ModelInputs {
  TensorView input_ids{};  // int32 or int64 [batch, seqlen]
  // [batch, length], boolean, int32 or int64, non-zero = real token; length = seqlen, or with
  // caches all tokens so far plus seqlen. Left, right or middle padding.
  TensorView attention_mask{};
  TensorView position_ids{};                // int32 [batch, seqlen]; default: count real tokens
  const PackedSequences* packed = nullptr;  // not together with a mask or caches
  nn::KVCaches* caches = nullptr;           // grow by seqlen tokens
  bool last_logits_only = false;            // logits of the last position: [batch, 1, vocab_size]
  bool training = false;                    // attention dropout is applied
  std::uint64_t dropout_seed = 0;
  std::uint64_t dropout_offset = 0;  // different in every step
};

// x + attention(norm(x)), then y + mlp(norm(y)).
struct DecoderLayer {
  nn::RMSNorm input_layernorm;
  std::unique_ptr<nn::MultiHeadAttention> self_attn;
  nn::RMSNorm post_attention_layernorm;
  nn::MLP mlp;

  // What the backward needs. The normalised inputs are computed again: cheaper than kept.
  struct Saved {
    Tensor x;  // [batch, seqlen, hidden]: input of the layer
    Tensor y;  // [batch, seqlen, hidden]: input of the second half
    nn::RMSNorm::Saved input_norm;
    nn::RMSNorm::Saved post_attention_norm;
    nn::AttentionSaved attention;
    nn::MLP::Saved mlp;
  };

  DecoderLayer(const ModelConfig& config, std::int64_t index);

  // inputs: everything but hidden_states, which is norm(x).
  Tensor forward(Tensor x, nn::AttentionInputs inputs, Saved* saved) const;
  Tensor backward(const TensorView& dout, nn::AttentionInputs inputs, const Saved& saved);
  void visit(const std::string& prefix, const nn::ParameterVisitor& visitor);
};

class CausalLM {
 public:
  // What forward keeps for backward: linear in the sequence with flash attention.
  struct Saved {
    std::vector<DecoderLayer::Saved> layers;
    Tensor x;  // [batch, seqlen, hidden]: input of the final norm
    nn::RMSNorm::Saved norm;
  };

  // Zero weights, unit norms. Throws invalid_argument for a config that does not fit together.
  explicit CausalLM(const ModelConfig& config);
  // Optimisers point to the parameters, so a model stays where it is.
  CausalLM(const CausalLM&) = delete;
  CausalLM& operator=(const CausalLM&) = delete;
  ~CausalLM() = default;

  // Matrices normal with standard deviation config.initializer_range, norms one, biases zero. The
  // weights depend on the seed and their name only: not on attention kind, on dtype by rounding
  // only.
  void init_weights(std::uint64_t seed);

  // Logits [batch, seqlen, vocab_size] in the model's dtype.
  Tensor forward(const ModelInputs& inputs, Saved* saved = nullptr) const;

  // Adds the gradients of all parameters, given dlogits of forward's result. inputs must equal the
  // forward's, without caches and last_logits_only. Frees the activations on its way.
  void backward(const TensorView& dlogits, const ModelInputs& inputs, Saved&& saved);

  // Calls visitor(name, parameter) in the order of the list above.
  void visit(const nn::ParameterVisitor& visitor);

  void zero_gradients();
  std::int64_t num_parameters();
  const ModelConfig& config() const { return config_; }

 private:
  void check_inputs(const ModelInputs& inputs) const;
  nn::AttentionInputs attention_inputs(const ModelInputs& inputs, std::size_t layer) const;
  const nn::Parameter& head() const {
    return config_.tie_word_embeddings ? embed_tokens_ : lm_head_;
  }

  ModelConfig config_;
  nn::Parameter embed_tokens_;
  std::vector<DecoderLayer> layers_;
  nn::RMSNorm norm_;
  nn::Parameter lm_head_;
};

// Copies all weights by name, converting the dtype. Throws invalid_argument if a name or a shape
// differs.
void copy_weights(CausalLM& source, CausalLM& destination);

}  // namespace flashmha::model
