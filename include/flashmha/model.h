// A decoder of the Llama family: embedding, layers of RMSNorm + attention + RMSNorm + gated MLP
// with residuals, a final RMSNorm and a head (Touvron et al. 2023, "LLaMA"). Forward and backward.
// What Llama, Mistral, Qwen2, Qwen3, Gemma 2 and Gemma 3 do differently is said by ModelConfig.
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
// and biases, q/k norms and sinks where the config has them. With sublayer_output_norms, layers
// have four norms, named as in Gemma: input_layernorm, post_attention_layernorm (after attention),
// pre_feedforward_layernorm and post_feedforward_layernorm.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
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

// What may differ between the layers of a model.
struct LayerConfig {
  std::int64_t sliding_window = 0;           // keys that a token sees, itself included; 0: all
  std::optional<nn::RotaryConfig> rotary{};  // not given: no rotation
  bool operator==(const LayerConfig&) const = default;
};

struct ModelConfig {
  std::int64_t vocab_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  ops::RMSNormOptions rms_norm{};      // of the hidden states; that of q and k is attention's
  bool sublayer_output_norms = false;  // norms also after attention and after the MLP, before the
                                       // residual is added (Gemma)
  ops::Activation activation = ops::Activation::silu;  // of the MLP's gate
  bool mlp_bias = false;
  bool scale_embeddings = false;  // by sqrt(hidden_size), rounded to dtype (Gemma)
  float logits_softcap = 0.0f;    // > 0: logits become softcap * tanh(logits / softcap)
  bool tie_word_embeddings = false;
  float initializer_range = 0.02f;  // standard deviation of random weights
  DType dtype = DType::float32;     // of parameters and activations
  Device device{};
  AttentionKind attention_kind = AttentionKind::flash;
  nn::AttentionConfig attention{};  // of every layer; hidden_size, heads, rotary, window, ...
  // Where layers differ: one for each, in place of attention's sliding_window and rotary.
  std::vector<LayerConfig> layers{};

  // Carried from and to config.json; the computation does not depend on them.
  std::string model_type{};  // empty: write_config takes the first architecture that fits
  std::optional<std::int64_t> bos_token_id{};
  std::optional<std::int64_t> pad_token_id{};
  std::vector<std::int64_t> eos_token_ids{};

  // What the layer computes: attention with the layer's window, rotary and index.
  nn::AttentionConfig attention_config(std::int64_t layer) const;
  // True if any layer has a window.
  bool has_sliding_window() const;
  // True if any layer's rotary angles depend on the longest sequence so far (dynamic NTK).
  bool has_dynamic_rotary() const;
};

// The model of `flashmha benchmark` and `flashmha sanity-check` when no flag says otherwise: small
// enough to train and time on two CPU cores in seconds. 14.7 million parameters.
ModelConfig default_config();

// One call of the model.
// Integers may be on the host also if the model is on a GPU.
struct ModelInputs {
  TensorView input_ids{};  // int32 or int64 [batch, seqlen]
  // [batch, length], boolean, int32 or int64, non-zero = real token; length = seqlen, or with
  // caches all tokens so far plus seqlen. Left, right or middle padding.
  TensorView attention_mask{};
  TensorView position_ids{};                // int32 [batch, seqlen]; default: count real tokens
  std::int64_t num_positions = 0;           // bound of position_ids; 0: they are looked at
  const PackedSequences* packed = nullptr;  // not together with a mask or caches
  nn::KVCaches* caches = nullptr;           // grow by seqlen tokens
  const nn::DecodeStep* decode = nullptr;   // with caches: the lengths are on the device
  bool last_logits_only = false;            // logits of the last position: [batch, 1, vocab_size]
  bool training = false;                    // attention dropout is applied
  bool recompute = false;  // for the backward a layer keeps its input only, and computes the rest
                           // again: a third more work, a fraction of the memory (Chen et al. 2016)
  std::uint64_t dropout_seed = 0;
  std::uint64_t dropout_offset = 0;  // different in every step
};

// y = x + attention(norm(x)), then y + mlp(norm(y)). With sublayer_output_norms the results of
// attention and of the MLP are normalised before they are added.
struct DecoderLayer {
  nn::RMSNorm attention_norm;
  std::unique_ptr<nn::MultiHeadAttention> self_attn;
  nn::RMSNorm attention_output_norm;  // defined with sublayer_output_norms
  nn::RMSNorm mlp_norm;
  nn::MLP mlp;
  nn::RMSNorm mlp_output_norm;  // defined with sublayer_output_norms

  // What the backward needs. The normalised inputs are computed again: cheaper than kept.
  struct Saved {
    Tensor x;                             // [batch, seqlen, hidden]: input of the layer
    Tensor y;                             // [batch, seqlen, hidden]: input of the second half
    Tensor attention_output, mlp_output;  // inputs of the output norms, where there are such
    nn::RMSNorm::Saved attention_norm, attention_output_norm, mlp_norm, mlp_output_norm;
    nn::AttentionSaved attention;
    nn::MLP::Saved mlp;
  };

  // config must be resolved, as CausalLM::config() is.
  DecoderLayer(const ModelConfig& config, std::int64_t index);

  // inputs: everything but hidden_states, which is norm(x).
  Tensor forward(Tensor x, nn::AttentionInputs inputs, Saved* saved) const;
  Tensor backward(const TensorView& dout, nn::AttentionInputs inputs, const Saved& saved);
  void visit(const std::string& prefix, const nn::ParameterVisitor& visitor);
};

class CausalLM {
 public:
  // What layers read of the inputs' integers, on the model's device: put there once, because
  // whoever copies to a GPU waits for it.
  struct DeviceInputs {
    Tensor input_ids;     // contiguous
    Tensor position_ids;  // not defined: layers count tokens
    std::int64_t num_positions = 0;
    std::optional<PackedSequences> packed;
  };

  // What forward keeps for backward: linear in the sequence with flash attention.
  struct Saved {
    DeviceInputs inputs;
    std::vector<DecoderLayer::Saved> layers;
    Tensor x;  // [batch, seqlen, hidden]: input of the final norm
    nn::RMSNorm::Saved norm;
    Tensor logits;  // before the softcap; defined only with one
  };

  // Zero weights, unit norms. Throws invalid_argument for a config that does not fit together.
  explicit CausalLM(const ModelConfig& config);
  // Optimisers point to the parameters, so a model stays where it is.
  CausalLM(const CausalLM&) = delete;
  CausalLM& operator=(const CausalLM&) = delete;
  ~CausalLM() = default;

  // Matrices normal with standard deviation config.initializer_range; vectors stay as they were
  // made (norms that multiply by one, biases of zero). The weights depend on the seed and their
  // name only: not on attention kind, on dtype by rounding only.
  void init_weights(std::uint64_t seed);

  // Logits [batch, seqlen, vocab_size] in the model's dtype.
  Tensor forward(const ModelInputs& inputs, Saved* saved = nullptr) const;
  // The same into memory of the caller, contiguous: what a Graph needs.
  void forward_into(const ModelInputs& inputs, const TensorView& logits,
                    Saved* saved = nullptr) const;

  // Adds the gradients of all parameters, given dlogits of forward's result. inputs must equal the
  // forward's, without caches and last_logits_only. Frees the activations on its way.
  void backward(const TensorView& dlogits, const ModelInputs& inputs, Saved&& saved);

  // Calls visitor(name, parameter) in the order of the list above.
  void visit(const nn::ParameterVisitor& visitor);

  void zero_gradients();
  std::int64_t num_parameters();
  const ModelConfig& config() const { return config_; }

 private:
  Shape logits_shape(const ModelInputs& inputs) const;
  void check_inputs(const ModelInputs& inputs) const;
  DeviceInputs on_device(const ModelInputs& inputs) const;
  nn::AttentionInputs attention_inputs(const ModelInputs& inputs, const DeviceInputs& on_device,
                                       std::size_t layer) const;
  const nn::Parameter& head() const {
    return config_.tie_word_embeddings ? embed_tokens_ : lm_head_;
  }

  ModelConfig config_;
  float embedding_scale_ = 1.0f;
  nn::Parameter embed_tokens_;
  std::vector<DecoderLayer> layers_;
  nn::RMSNorm norm_;
  nn::Parameter lm_head_;
};

// Copies all weights by name, converting the dtype. Throws invalid_argument if a name or a shape
// differs.
void copy_weights(CausalLM& source, CausalLM& destination);

}  // namespace flashmha::model
