// ModelConfig -> config.json. The description is read again before it is written: what is in the
// file is the model, or there is no file.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "core/check.h"
#include "flashmha/checkpoint.h"
#include "io/file.h"
#include "model/config_json.h"

namespace flashmha::model {
namespace {

// The shortest decimal number that is this float: 1e-05, not 9.999999747378752e-06.
double decimal(float value) {
  return std::strtod(fmt::format("{}", value).c_str(), nullptr);
}

// The scalar whose square root divides the scores; a whole number where that gives the same float.
io::Json query_scalar(const nn::AttentionConfig& attention) {
  if (!attention.softmax_scale) return attention.head_dim;
  const double scale = static_cast<double>(*attention.softmax_scale);
  const double exact = 1.0 / (scale * scale);
  const double whole = std::round(exact);
  if (static_cast<float>(1.0 / std::sqrt(whole)) == *attention.softmax_scale) {
    return static_cast<std::int64_t>(whole);
  }
  return exact;
}

// The rotary embeddings of the first layer of each kind; where there is none, Transformers'
// default.
RotaryPair rotary_pair(const ModelConfig& config, const Architecture& architecture) {
  const nn::AttentionConfig first = config.attention_config(0);
  const nn::RotaryConfig some = first.rotary.value_or(nn::RotaryConfig{});
  RotaryPair pair{.full = some, .sliding = some};
  if (architecture.local_rope_theta) {
    const nn::RotaryConfig plain{.head_dim = some.head_dim,
                                 .rope_theta = architecture.rope_theta,
                                 .max_position_embeddings = some.max_position_embeddings};
    pair.full = pair.sliding = plain;
    pair.sliding.rope_theta = *architecture.local_rope_theta;
  }
  for (std::int64_t layer = config.num_layers; layer-- > 0;) {
    const nn::AttentionConfig own = config.attention_config(layer);
    if (own.rotary) (own.sliding_window > 0 ? pair.sliding : pair.full) = *own.rotary;
  }
  return pair;
}

void write_windows(const ModelConfig& config, const Architecture& architecture, io::Json& json) {
  if (!architecture.has("sliding_window")) return;
  std::int64_t window = 0;
  std::int64_t first = config.num_layers;
  io::Json types = io::Json::array();
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::int64_t own = config.attention_config(layer).sliding_window;
    if (own > 0 && window == 0) first = layer;
    window = std::max(window, own);
    types.push_back(own > 0 ? "sliding_attention" : "full_attention");
  }
  json["sliding_window"] = window > 0 ? io::Json(window) : io::Json();
  if (architecture.has("use_sliding_window")) {
    json["use_sliding_window"] = window > 0;
    json["max_window_layers"] = first;
  }
  if (architecture.has("layer_types")) json["layer_types"] = std::move(types);
}

io::Json cap_or_null(float cap) {
  return cap > 0.0f ? io::Json(decimal(cap)) : io::Json();
}

io::Json id_or_null(const std::optional<std::int64_t>& id) {
  return id ? io::Json(*id) : io::Json();
}

// All sizes as they are, rotary embeddings with their head_dim, layers empty if they are equal.
ModelConfig normalised(ModelConfig config) {
  config.attention = config.attention.resolved();
  if (!config.attention.softmax_scale) {
    config.attention.softmax_scale =
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.attention.head_dim)));
  }
  for (LayerConfig& layer : config.layers) {
    if (layer.rotary) layer.rotary->head_dim = config.attention.head_dim;
  }
  make_uniform(config);
  return config;
}

// The first thing that two normalised configs compute differently, or "".
std::string_view first_difference(const ModelConfig& a, const ModelConfig& b) {
  const nn::AttentionConfig &x = a.attention, &y = b.attention;
  const std::pair<bool, std::string_view> rules[] = {
      {a.vocab_size == b.vocab_size, "vocab_size"},
      {a.intermediate_size == b.intermediate_size, "intermediate_size"},
      {a.num_layers == b.num_layers, "num_layers"},
      {a.rms_norm == b.rms_norm, "rms_norm"},
      {a.sublayer_output_norms == b.sublayer_output_norms, "sublayer_output_norms"},
      {a.activation == b.activation, "activation"},
      {a.mlp_bias == b.mlp_bias, "mlp_bias"},
      {a.scale_embeddings == b.scale_embeddings, "scale_embeddings"},
      {a.logits_softcap == b.logits_softcap, "logits_softcap"},
      {a.tie_word_embeddings == b.tie_word_embeddings, "tie_word_embeddings"},
      {a.dtype == b.dtype, "dtype"},
      {x.hidden_size == y.hidden_size, "attention.hidden_size"},
      {x.num_heads == y.num_heads, "attention.num_heads"},
      {x.num_kv_heads == y.num_kv_heads, "attention.num_kv_heads"},
      {x.head_dim == y.head_dim, "attention.head_dim"},
      {x.qkv_bias == y.qkv_bias, "attention.qkv_bias"},
      {x.out_bias == y.out_bias, "attention.out_bias"},
      {x.qk_norm == y.qk_norm, "attention.qk_norm"},
      {!x.qk_norm || x.qk_norm_options == y.qk_norm_options, "attention.qk_norm_options"},
      {x.softmax_scale == y.softmax_scale, "attention.softmax_scale"},
      {x.causal == y.causal, "attention.causal"},
      {x.softcap == y.softcap, "attention.softcap"},
      {x.sinks == y.sinks, "attention.sinks"},
      {x.dropout == y.dropout, "attention.dropout"},
      {a.layers == b.layers, "layers"},
      {!a.layers.empty() || x.sliding_window == y.sliding_window, "attention.sliding_window"},
      {!a.layers.empty() || x.rotary == y.rotary, "attention.rotary"},
  };
  for (const auto& [equal, name] : rules) {
    if (!equal) return name;
  }
  return "";
}

// What config says that this description of it does not, or "".
std::string lost(const ModelConfig& config, const io::Json& json) {
  try {
    const ModelConfig read = config_from_json(io::JsonObject(json, "[write_config] config.json"));
    return std::string(first_difference(normalised(config), normalised(read)));
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

io::Json config_to_json(const ModelConfig& config, const Architecture& architecture) {
  const nn::AttentionConfig attention = config.attention.resolved();
  io::Json json = {
      {"architectures", {architecture.class_name}},
      {"model_type", architecture.model_type},
      {"vocab_size", config.vocab_size},
      {"hidden_size", attention.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"num_hidden_layers", config.num_layers},
      {"num_attention_heads", attention.num_heads},
      {"num_key_value_heads", attention.num_kv_heads},
      {"head_dim", attention.head_dim},
      {"rms_norm_eps", decimal(config.rms_norm.eps)},
      {"initializer_range", decimal(config.initializer_range)},
      {"attention_dropout", decimal(attention.dropout)},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"torch_dtype", dtype_name(config.dtype)},
      {"use_cache", true},
      {"bos_token_id", id_or_null(config.bos_token_id)},
      {"pad_token_id", id_or_null(config.pad_token_id)},
      {"eos_token_id", config.eos_token_ids.empty() ? io::Json() : io::Json(config.eos_token_ids)},
  };
  if (config.eos_token_ids.size() == 1) json["eos_token_id"] = config.eos_token_ids.front();
  json[std::string(architecture.activation_field)] = activation_name(config.activation);
  if (architecture.has("attention_bias")) json["attention_bias"] = attention.out_bias;
  if (architecture.has("mlp_bias")) json["mlp_bias"] = config.mlp_bias;
  if (architecture.has("query_pre_attn_scalar")) {
    json["query_pre_attn_scalar"] = query_scalar(attention);
  }
  if (architecture.has("attn_logit_softcapping")) {
    json["attn_logit_softcapping"] = cap_or_null(attention.softcap);
  }
  if (architecture.has("final_logit_softcapping")) {
    json["final_logit_softcapping"] = cap_or_null(config.logits_softcap);
  }
  write_windows(config, architecture, json);
  write_rotary(rotary_pair(config, architecture), architecture, json);
  return json;
}

void write_config(const ModelConfig& config, const std::string& directory) {
  std::string reasons;
  for (const Architecture& architecture : architectures()) {
    if (!config.model_type.empty() && config.model_type != architecture.model_type) continue;
    const io::Json json = config_to_json(config, architecture);
    const std::string reason = lost(config, json);
    if (reason.empty()) {
      io::write_text_file(directory + "/config.json", json.dump(2) + "\n");
      return;
    }
    reasons +=
        fmt::format("{}{} ({})", reasons.empty() ? "" : ", ", architecture.model_type, reason);
  }
  fail(ErrorCode::unsupported,
       "[write_config] {}/config.json: no architecture of Transformers that we know computes this "
       "model; tried, and what the description would lose: {}",
       directory, reasons.empty() ? "model_type " + config.model_type + " is not known" : reasons);
}

}  // namespace flashmha::model
