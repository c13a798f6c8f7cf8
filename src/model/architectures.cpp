#include "model/architectures.h"

#include <algorithm>

namespace flashmha::model {

bool Architecture::has(std::string_view field) const {
  return std::ranges::find(fields, field) != fields.end();
}

const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> table = {
      {.model_type = "llama",
       .class_name = "LlamaForCausalLM",
       .fields = {"attention_bias", "mlp_bias"},
       .kv_heads_default_to_all = true},
      {.model_type = "mistral",
       .class_name = "MistralForCausalLM",
       .fields = {"sliding_window"},
       .sliding_window = 4096},
      {.model_type = "qwen2",
       .class_name = "Qwen2ForCausalLM",
       .fields = {"sliding_window", "use_sliding_window", "layer_types"},
       .qkv_bias = true,
       .sliding_window = 4096},
      {.model_type = "qwen3",
       .class_name = "Qwen3ForCausalLM",
       .fields = {"attention_bias", "sliding_window", "use_sliding_window", "layer_types"},
       .qk_norm = true,
       .head_dim = 128,
       .sliding_window = 4096},
      {.model_type = "gemma2",
       .class_name = "Gemma2ForCausalLM",
       .fields = {"attention_bias", "sliding_window", "layer_types", "query_pre_attn_scalar",
                  "attn_logit_softcapping", "final_logit_softcapping"},
       .gemma = true,
       .activation_field = "hidden_activation",
       .activation = "gelu_pytorch_tanh",
       .head_dim = 256,
       .tie_word_embeddings = true,
       .sliding_window = 4096,
       .full_attention_every = 2,
       .query_pre_attn_scalar = 256.0,
       .attention_softcap = 50.0,
       .logits_softcap = 30.0},
      // Transformers 5 reads attn_logit_softcapping of Gemma 3 and then does not apply it: no
      // checkpoint has it, and here it is refused.
      {.model_type = "gemma3_text",
       .class_name = "Gemma3ForCausalLM",
       .fields = {"attention_bias", "sliding_window", "layer_types", "sliding_window_pattern",
                  "rope_local_base_freq", "query_pre_attn_scalar", "final_logit_softcapping"},
       .qk_norm = true,
       .gemma = true,
       .activation_field = "hidden_activation",
       .activation = "gelu_pytorch_tanh",
       .head_dim = 256,
       .tie_word_embeddings = true,
       .rope_theta = 1'000'000.0,
       .local_rope_theta = 10000.0,
       .sliding_window = 4096,
       .full_attention_every = 6,
       .query_pre_attn_scalar = 256.0},
  };
  return table;
}

const Architecture* find_architecture(std::string_view model_type) {
  const std::vector<Architecture>& table = architectures();
  const auto found = std::ranges::find(table, model_type, &Architecture::model_type);
  return found == table.end() ? nullptr : &*found;
}

}  // namespace flashmha::model
