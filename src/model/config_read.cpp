// config.json -> ModelConfig. What changes the computation is understood or refused, never ignored.
#include <algorithm>
#include <cmath>
#include <utility>

#include "core/check.h"
#include "flashmha/checkpoint.h"
#include "model/config_json.h"

namespace flashmha::model {
namespace {

// Far beyond every published model, far below what overflows.
constexpr std::int64_t kMostTokens = std::int64_t{1} << 31;  // of a vocabulary: ids are int32
constexpr std::int64_t kLargestSize = std::int64_t{1} << 24;
constexpr std::int64_t kMostLayers = 10000;
constexpr std::int64_t kLongest = std::int64_t{1} << 40;

// Fields that some architecture computes with, and the value that asks for nothing. A field that is
// missing or null asks for nothing either.
const std::vector<std::pair<const char*, io::Json>>& neutral_values() {
  static const std::vector<std::pair<const char*, io::Json>> fields = {
      {"attention_bias", false},
      {"mlp_bias", false},
      {"sliding_window", nullptr},
      {"use_sliding_window", false},
      {"layer_types", nullptr},
      {"sliding_window_pattern", nullptr},
      {"rope_local_base_freq", nullptr},
      {"query_pre_attn_scalar", nullptr},
      {"attn_logit_softcapping", nullptr},
      {"final_logit_softcapping", nullptr},
      {"use_bidirectional_attention", false},
      {"partial_rotary_factor", 1},
      {"pretraining_tp", 1},
      {"quantization_config", nullptr},
      {"compression_config", nullptr},
      {"per_layer_config", nullptr},
      {"num_local_experts", 0},
      {"num_experts", 0},
      {"n_routed_experts", 0},
      {"moe_intermediate_size", nullptr},
      {"is_encoder_decoder", false},
      {"add_cross_attention", false},
      {"attention_chunk_size", nullptr},
      {"attn_output_gate", false},
      {"no_rope_layers", nullptr},
      {"use_qk_norm", false},
      {"use_mrope", false},
      {"qk_layernorm", false},
      {"clip_qkv", nullptr},
      {"attention_multiplier", nullptr},
      {"embedding_multiplier", 1},
      {"residual_multiplier", 1},
      {"logits_scaling", 1},
      {"logit_scale", 1},
      {"hidden_dropout", 0},
      {"resid_pdrop", 0},
      {"embd_pdrop", 0},
  };
  return fields;
}

void refuse_foreign_fields(const io::JsonObject& json, const Architecture& architecture) {
  for (const auto& [field, neutral] : neutral_values()) {
    if (architecture.has(field) || !json.has(field) || json.at(field) == neutral) continue;
    refuse_unsupported(json, field,
                       fmt::format("must be {} or missing for model_type {}", neutral.dump(),
                                   architecture.model_type));
  }
  if (!json.has("architectures")) return;
  const io::Json& classes = json.array("architectures");
  if (std::ranges::find(classes, io::Json(architecture.class_name)) == classes.end()) {
    refuse_unsupported(json, "architectures",
                       fmt::format("must have {} for model_type {}", architecture.class_name,
                                   architecture.model_type));
  }
}

const Architecture& architecture_of(const io::JsonObject& json) {
  if (const Architecture* row = find_architecture(json.text("model_type"))) return *row;
  std::string known;
  for (const Architecture& row : architectures())
    known += fmt::format("{}{}", known.empty() ? "" : ", ", row.model_type);
  refuse_unsupported(json, "model_type", "must be one of " + known);
}

// Of fields that mean something when they are null: absent is not the same.
bool is_absent(const io::JsonObject& json, const std::string& key) {
  return !json.value().contains(key);
}

DType dtype_of(const io::JsonObject& json) {
  const std::string key = json.has("dtype") ? "dtype" : "torch_dtype";
  const std::string name = json.text(key, "float32");
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  refuse_unsupported(json, key, "must be float32, bfloat16 or float16");
}

void read_heads(const io::JsonObject& json, const Architecture& architecture,
                nn::AttentionConfig& attention) {
  attention.hidden_size = integer_between(json, "hidden_size", 1, kLargestSize);
  attention.num_heads = integer_between(json, "num_attention_heads", 1, kLargestSize);
  const bool all = !json.has("num_key_value_heads") && (architecture.kv_heads_default_to_all ||
                                                        !is_absent(json, "num_key_value_heads"));
  attention.num_kv_heads =
      all ? attention.num_heads
          : integer_between(json, "num_key_value_heads", 1, attention.num_heads);
  if (attention.num_heads % attention.num_kv_heads != 0) {
    json.refuse("num_key_value_heads",
                fmt::format("must divide num_attention_heads ({})", attention.num_heads));
  }
  attention.head_dim = architecture.head_dim;
  if (json.has("head_dim")) {
    attention.head_dim = integer_between(json, "head_dim", 2, 1 << 16);
  } else if (attention.head_dim == 0) {
    if (attention.hidden_size % attention.num_heads != 0) {
      json.refuse("hidden_size", fmt::format("must be a multiple of num_attention_heads ({}) where "
                                             "head_dim is not given",
                                             attention.num_heads));
    }
    attention.head_dim = attention.hidden_size / attention.num_heads;
  }
  const std::string origin = json.has("head_dim") ? "head_dim" : "hidden_size";
  if (attention.head_dim % 2 != 0) json.refuse(origin, "must give heads of an even size");
  if (attention.num_heads * attention.head_dim > kLargestSize) {
    json.refuse("num_attention_heads", fmt::format("times the size of a head ({}) must be at most "
                                                   "{}",
                                                   attention.head_dim, kLargestSize));
  }
}

void read_attention(const io::JsonObject& json, const Architecture& architecture,
                    nn::AttentionConfig& attention) {
  read_heads(json, architecture, attention);
  const bool bias = architecture.has("attention_bias") && json.boolean("attention_bias", false);
  attention.qkv_bias = bias || architecture.qkv_bias;
  attention.out_bias = bias;
  attention.qk_norm = architecture.qk_norm;
  if (architecture.query_pre_attn_scalar > 0.0) {
    const double scalar = json.has("query_pre_attn_scalar")
                              ? number_between(json, "query_pre_attn_scalar", 1e-6, 1e9)
                              : architecture.query_pre_attn_scalar;
    attention.softmax_scale = static_cast<float>(1.0 / std::sqrt(scalar));
  }
  if (json.has("attention_dropout")) {
    attention.dropout = static_cast<float>(number_between(json, "attention_dropout", 0.0, 0.999));
  }
}

float read_softcap(const io::JsonObject& json, const Architecture& architecture,
                   const std::string& key, const std::optional<double>& otherwise) {
  if (!architecture.has(key)) return 0.0f;
  if (is_absent(json, key)) return static_cast<float>(otherwise.value_or(0.0));
  return json.has(key) ? static_cast<float>(number_between(json, key, 1e-3, 1e6)) : 0.0f;
}

// The window of the layers that have one; 0: no layer can have one.
std::int64_t read_window(const io::JsonObject& json, const Architecture& architecture) {
  if (!architecture.sliding_window) return 0;
  if (architecture.has("use_sliding_window") && !json.boolean("use_sliding_window", false))
    return 0;
  if (is_absent(json, "sliding_window")) return *architecture.sliding_window;
  return json.has("sliding_window") ? integer_between(json, "sliding_window", 1, kLongest) : 0;
}

std::vector<bool> read_layer_types(const io::JsonObject& json, std::int64_t num_layers) {
  const io::Json& types = json.array("layer_types");
  if (static_cast<std::int64_t>(types.size()) != num_layers) {
    json.refuse("layer_types", fmt::format("must have num_hidden_layers ({}) elements; it has {}",
                                           num_layers, types.size()));
  }
  std::vector<bool> sliding;
  for (const io::Json& type : types) {
    if (type != "full_attention" && type != "sliding_attention") {
      refuse_unsupported(json, "layer_types", "must be full_attention or sliding_attention");
    }
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

// Which layers have the window.
std::vector<bool> sliding_layers(const io::JsonObject& json, const Architecture& architecture,
                                 std::int64_t num_layers, std::int64_t window) {
  if (architecture.has("layer_types") && json.has("layer_types")) {
    std::vector<bool> sliding = read_layer_types(json, num_layers);
    if (window == 0 && std::ranges::find(sliding, true) != sliding.end()) {
      json.refuse("layer_types",
                  "must not have sliding_attention: sliding_window or "
                  "use_sliding_window says that there is no window");
    }
    return sliding;
  }
  std::int64_t first = 0;
  std::int64_t full_every = architecture.full_attention_every;
  if (architecture.has("use_sliding_window")) {
    constexpr std::int64_t kDefault = 28;
    first = json.has("max_window_layers")
                ? integer_between(json, "max_window_layers", 0, kMostLayers)
                : kDefault;
  }
  if (architecture.has("sliding_window_pattern") && json.has("sliding_window_pattern")) {
    full_every = integer_between(json, "sliding_window_pattern", 1, kMostLayers);
  }
  const bool pattern = architecture.full_attention_every > 1;
  std::vector<bool> sliding;
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    const bool full = pattern && (layer + 1) % full_every == 0;
    sliding.push_back(window > 0 && layer >= first && !full);
  }
  return sliding;
}

void read_layers(const io::JsonObject& json, const Architecture& architecture,
                 ModelConfig& config) {
  const RotaryPair rotary = read_rotary(json, architecture, config.attention.head_dim);
  const std::int64_t window = read_window(json, architecture);
  const std::vector<bool> sliding = sliding_layers(json, architecture, config.num_layers, window);
  for (const bool has_window : sliding) {
    config.layers.push_back({.sliding_window = has_window ? window : 0,
                             .rotary = has_window ? rotary.sliding : rotary.full});
  }
  make_uniform(config);
}

void read_token_ids(const io::JsonObject& json, ModelConfig& config) {
  if (json.has("bos_token_id")) config.bos_token_id = json.integer("bos_token_id");
  if (json.has("pad_token_id")) config.pad_token_id = json.integer("pad_token_id");
  if (!json.has("eos_token_id")) return;
  const io::Json& ids = json.at("eos_token_id");
  if (!ids.is_array()) {
    config.eos_token_ids = {json.integer("eos_token_id")};
    return;
  }
  for (const io::Json& id : ids) {
    if (!id.is_number_integer())
      json.refuse("eos_token_id", "must be an integer or a list of them");
    config.eos_token_ids.push_back(id.get<std::int64_t>());
  }
}

}  // namespace

void refuse_unsupported(const io::JsonObject& json, const std::string& key, std::string_view rule) {
  fail(ErrorCode::unsupported, "{}: {} {}; got {}", json.where(), json.field(key), rule,
       io::quote(json.at(key).dump(-1, ' ', false, io::Json::error_handler_t::replace)));
}

std::int64_t integer_between(const io::JsonObject& json, const std::string& key, std::int64_t least,
                             std::int64_t most) {
  const std::int64_t value = json.integer(key);
  if (value < least || value > most) {
    json.refuse(key, fmt::format("must be from {} to {}", least, most));
  }
  return value;
}

double number_between(const io::JsonObject& json, const std::string& key, double least,
                      double most) {
  const double value = json.number(key);
  if (!(value >= least && value <= most)) {
    json.refuse(key, fmt::format("must be from {} to {}", least, most));
  }
  return value;
}

std::optional<ops::Activation> activation_of(std::string_view name) {
  if (name == "silu" || name == "swish") return ops::Activation::silu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return ops::Activation::gelu_tanh;
  return std::nullopt;
}

std::string_view activation_name(ops::Activation activation) {
  return activation == ops::Activation::silu ? "silu" : "gelu_pytorch_tanh";
}

ModelConfig config_from_json(const io::JsonObject& json) {
  const Architecture& architecture = architecture_of(json);
  refuse_foreign_fields(json, architecture);
  ModelConfig config;
  config.model_type = architecture.model_type;
  config.vocab_size = integer_between(json, "vocab_size", 1, kMostTokens - 1);
  config.intermediate_size = integer_between(json, "intermediate_size", 1, kLargestSize);
  config.num_layers = integer_between(json, "num_hidden_layers", 1, kMostLayers);
  if (json.has("rms_norm_eps")) {
    config.rms_norm.eps = static_cast<float>(number_between(json, "rms_norm_eps", 1e-30, 1.0));
  }
  config.rms_norm.weight_offset = architecture.gemma ? 1.0f : 0.0f;
  config.sublayer_output_norms = architecture.gemma;
  config.scale_embeddings = architecture.gemma;
  const std::string field(architecture.activation_field);
  const auto activation = activation_of(json.text(field, std::string(architecture.activation)));
  if (!activation) refuse_unsupported(json, field, "must be silu or gelu_pytorch_tanh");
  config.activation = *activation;
  config.mlp_bias = architecture.has("mlp_bias") && json.boolean("mlp_bias", false);
  config.tie_word_embeddings =
      json.boolean("tie_word_embeddings", architecture.tie_word_embeddings);
  config.logits_softcap =
      read_softcap(json, architecture, "final_logit_softcapping", architecture.logits_softcap);
  if (json.has("initializer_range")) {
    config.initializer_range =
        static_cast<float>(number_between(json, "initializer_range", 0.0, 1e3));
  }
  config.dtype = dtype_of(json);
  read_attention(json, architecture, config.attention);
  config.attention.softcap =
      read_softcap(json, architecture, "attn_logit_softcapping", architecture.attention_softcap);
  config.attention.qk_norm_options = config.rms_norm;
  read_layers(json, architecture, config);
  read_token_ids(json, config);
  return config;
}

ModelConfig read_config(const std::string& directory) {
  const std::string path = directory + "/config.json";
  const std::string where = "[read_config] " + path;
  const io::Json json = io::read_json_file(path, where, {.max_bytes = std::size_t{16} << 20});
  return config_from_json(io::JsonObject(json, where));
}

}  // namespace flashmha::model
