// What makes one architecture of Hugging Face another: a table, one row each. Everything that reads
// or writes config.json asks it; nothing that computes does.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "flashmha/ops.h"

namespace flashmha::model {

// Defaults are what Transformers takes where config.json is silent.
struct Architecture {
  std::string_view model_type;
  std::string_view class_name;
  // The fields with a meaning for the computation that not every architecture has. In others they
  // must be neutral.
  std::vector<std::string_view> fields;
  bool qkv_bias = false;  // always; elsewhere attention_bias says it, of q, k, v and o
  bool qk_norm = false;

  // Gemma: norms multiply by 1 + weight, there are four of them in a layer, embeddings are scaled.
  bool gemma = false;
  std::string_view activation_field = "hidden_act";
  std::string_view activation = "silu";

  std::int64_t head_dim = 0;             // 0: hidden_size / num_attention_heads
  bool kv_heads_default_to_all = false;  // num_key_value_heads may be missing
  bool tie_word_embeddings = false;
  double rope_theta = 10000.0;
  std::optional<double> local_rope_theta{};  // layers with a window have an own rotary embedding
  std::optional<std::int64_t> sliding_window{};
  // Where layer_types is not given: of so many layers the last sees everything; 1: every layer has
  // the window.
  std::int64_t full_attention_every = 1;
  double query_pre_attn_scalar = 0.0;  // 0: head_dim
  std::optional<double> attention_softcap{};
  std::optional<double> logits_softcap{};

  bool has(std::string_view field) const;
};

const std::vector<Architecture>& architectures();

// The row, or null.
const Architecture* find_architecture(std::string_view model_type);

}  // namespace flashmha::model
