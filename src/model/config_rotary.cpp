// Rotary parameters in config.json. Transformers 4: rope_theta, rope_scaling and, in Gemma 3,
// rope_local_base_freq. Transformers 5: rope_parameters, in Gemma 3 one object per type of layer.
#include <algorithm>
#include <array>
#include <map>

#include "core/check.h"
#include "model/config_json.h"

namespace flashmha::model {
namespace {

using nn::RotaryConfig;
using nn::RotaryScaling;

constexpr double kLargestTheta = 1e15;
constexpr double kLargestFactor = 1e6;
constexpr std::int64_t kLongest = std::int64_t{1} << 40;  // tokens

const std::map<std::string, RotaryScaling, std::less<>>& scalings() {
  static const std::map<std::string, RotaryScaling, std::less<>> names = {
      {"default", RotaryScaling::none},
      {"linear", RotaryScaling::linear},
      {"dynamic", RotaryScaling::dynamic_ntk},
      {"yarn", RotaryScaling::yarn},
      {"llama3", RotaryScaling::llama3}};
  return names;
}

constexpr std::array kKnownKeys = {"rope_type",
                                   "type",
                                   "rope_theta",
                                   "factor",
                                   "beta_fast",
                                   "beta_slow",
                                   "mscale",
                                   "mscale_all_dim",
                                   "truncate",
                                   "low_freq_factor",
                                   "high_freq_factor",
                                   "attention_factor",
                                   "original_max_position_embeddings",
                                   "partial_rotary_factor"};

void read_yarn(const io::JsonObject& rope, RotaryConfig& config) {
  const auto read = [&](const char* key, double& value) {
    if (rope.has(key)) value = number_between(rope, key, 0.0, kLargestFactor);
  };
  read("beta_fast", config.beta_fast);
  read("beta_slow", config.beta_slow);
  read("mscale", config.mscale);
  read("mscale_all_dim", config.mscale_all_dim);
  if (config.beta_fast <= 0.0) rope.refuse("beta_fast", "must be positive");
  if (config.beta_slow <= 0.0) rope.refuse("beta_slow", "must be positive");
  if (rope.has("attention_factor")) {
    config.attention_factor = number_between(rope, "attention_factor", 1e-6, kLargestFactor);
  }
  config.truncate = rope.boolean("truncate", config.truncate);
}

void read_llama3(const io::JsonObject& rope, RotaryConfig& config) {
  config.low_freq_factor = number_between(rope, "low_freq_factor", 1e-6, kLargestFactor);
  config.high_freq_factor = number_between(rope, "high_freq_factor", 1e-6, kLargestFactor);
  if (config.high_freq_factor <= config.low_freq_factor) {
    rope.refuse("high_freq_factor", "must be above low_freq_factor");
  }
}

// rope_scaling or rope_parameters on top of what the rest of the file says.
RotaryConfig read_parameters(const io::JsonObject& rope, RotaryConfig config) {
  for (const auto& [key, value] : rope.value().items()) {
    if (std::ranges::find(kKnownKeys, key) == kKnownKeys.end() && !value.is_null()) {
      refuse_unsupported(rope, key, "is not known");
    }
  }
  const std::string key = rope.has("rope_type") ? "rope_type" : "type";
  const auto scaling = scalings().find(rope.text(key, "default"));
  if (scaling == scalings().end()) {
    refuse_unsupported(rope, key, "must be default, linear, dynamic, yarn or llama3");
  }
  config.scaling = scaling->second;
  if (rope.has("rope_theta")) {
    config.rope_theta = number_between(rope, "rope_theta", 1.001, kLargestTheta);
  }
  if (rope.number("partial_rotary_factor", 1.0) != 1.0) {
    refuse_unsupported(rope, "partial_rotary_factor", "must be 1");
  }
  if (config.scaling == RotaryScaling::none) return config;
  config.factor = number_between(rope, "factor", 1.0, kLargestFactor);
  if (config.scaling == RotaryScaling::yarn) read_yarn(rope, config);
  if (config.scaling == RotaryScaling::llama3) read_llama3(rope, config);
  const bool has_original =
      config.scaling == RotaryScaling::yarn || config.scaling == RotaryScaling::llama3;
  if (has_original && rope.has("original_max_position_embeddings")) {
    config.original_max_position_embeddings =
        integer_between(rope, "original_max_position_embeddings", 1, kLongest);
  }
  return config;
}

// The field's object on top of base, or base where there is none.
RotaryConfig read_field(const io::JsonObject& json, const std::string& key,
                        const RotaryConfig& base) {
  return json.has(key) ? read_parameters(json.object(key), base) : base;
}

void refuse_difference(const io::JsonObject& json, const std::string& key, bool equal,
                       const char* other) {
  if (equal) return;
  json.refuse(key, fmt::format("contradicts {}", other));
}

// One embedding for all layers, which may be told in the old way, in the new way, or in both.
RotaryConfig read_one(const io::JsonObject& json, const RotaryConfig& base) {
  const RotaryConfig scaled = read_field(json, "rope_scaling", base);
  const RotaryConfig config = read_field(json, "rope_parameters", scaled);
  if (json.has("rope_parameters") && json.has("rope_scaling")) {
    refuse_difference(json, "rope_scaling", config == scaled, "rope_parameters");
  }
  if (json.has("rope_theta")) {
    refuse_difference(json, "rope_theta", config.rope_theta == base.rope_theta,
                      "the rope_theta of rope_parameters or rope_scaling");
  }
  return config;
}

RotaryPair read_pair(const io::JsonObject& json, const RotaryConfig& base,
                     const RotaryConfig& local) {
  RotaryPair pair{.full = read_field(json, "rope_scaling", base), .sliding = local};
  if (!json.has("rope_parameters")) return pair;
  const io::JsonObject layers = json.object("rope_parameters");
  for (const auto& [key, value] : layers.value().items()) {
    if (key != "full_attention" && key != "sliding_attention") {
      refuse_unsupported(layers, key,
                         "is not known: rope_parameters must have full_attention and "
                         "sliding_attention");
    }
  }
  const RotaryPair given{.full = read_field(layers, "full_attention", base),
                         .sliding = read_field(layers, "sliding_attention", local)};
  if (json.has("rope_scaling")) {
    refuse_difference(json, "rope_scaling", given.full == pair.full, "rope_parameters");
  }
  if (json.has("rope_theta")) {
    refuse_difference(json, "rope_theta", given.full.rope_theta == base.rope_theta,
                      "rope_parameters");
  }
  if (json.has("rope_local_base_freq")) {
    refuse_difference(json, "rope_local_base_freq", given.sliding.rope_theta == local.rope_theta,
                      "rope_parameters");
  }
  return given;
}

// rope_scaling, or with the theta one object of rope_parameters.
io::Json parameters_of(const RotaryConfig& config) {
  io::Json json = io::Json::object();
  for (const auto& [name, scaling] : scalings()) {
    if (scaling == config.scaling) json["rope_type"] = name;
  }
  if (config.scaling == RotaryScaling::none) return json;
  json["factor"] = config.factor;
  if (config.original_max_position_embeddings > 0) {
    json["original_max_position_embeddings"] = config.original_max_position_embeddings;
  }
  if (config.scaling == RotaryScaling::llama3) {
    json["low_freq_factor"] = config.low_freq_factor;
    json["high_freq_factor"] = config.high_freq_factor;
  }
  if (config.scaling == RotaryScaling::yarn) {
    json["beta_fast"] = config.beta_fast;
    json["beta_slow"] = config.beta_slow;
    if (config.mscale != 0.0) json["mscale"] = config.mscale;
    if (config.mscale_all_dim != 0.0) json["mscale_all_dim"] = config.mscale_all_dim;
    if (config.attention_factor) json["attention_factor"] = *config.attention_factor;
    json["truncate"] = config.truncate;
  }
  return json;
}

}  // namespace

RotaryPair read_rotary(const io::JsonObject& json, const Architecture& architecture,
                       std::int64_t head_dim) {
  const auto theta = [&](const char* key, double otherwise) {
    return json.has(key) ? number_between(json, key, 1.001, kLargestTheta) : otherwise;
  };
  RotaryConfig base{
      .head_dim = head_dim,
      .rope_theta = theta("rope_theta", architecture.rope_theta),
      .max_position_embeddings = integer_between(json, "max_position_embeddings", 1, kLongest)};
  RotaryPair pair;
  if (architecture.local_rope_theta) {
    RotaryConfig local = base;
    local.rope_theta = theta("rope_local_base_freq", *architecture.local_rope_theta);
    pair = read_pair(json, base, local);
  } else {
    pair.full = pair.sliding = read_one(json, base);
  }
  // Where Transformers finds this outside (Phi 3), it counts more than what is inside.
  if (json.has("original_max_position_embeddings")) {
    const std::int64_t original =
        integer_between(json, "original_max_position_embeddings", 1, kLongest);
    for (RotaryConfig* config : {&pair.full, &pair.sliding}) {
      if (config->scaling == RotaryScaling::yarn || config->scaling == RotaryScaling::llama3) {
        config->original_max_position_embeddings = original;
      }
    }
  }
  return pair;
}

// As Transformers 4 does wherever that can say it, because 5 and others read that too.
void write_rotary(const RotaryPair& rotary, const Architecture& architecture, io::Json& json) {
  json["max_position_embeddings"] = rotary.full.max_position_embeddings;
  json["rope_theta"] = rotary.full.rope_theta;
  if (architecture.local_rope_theta) json["rope_local_base_freq"] = rotary.sliding.rope_theta;
  if (architecture.local_rope_theta && rotary.sliding.scaling != RotaryScaling::none) {
    json["rope_parameters"] = {{"full_attention", parameters_of(rotary.full)},
                               {"sliding_attention", parameters_of(rotary.sliding)}};
    json["rope_parameters"]["full_attention"]["rope_theta"] = rotary.full.rope_theta;
    json["rope_parameters"]["sliding_attention"]["rope_theta"] = rotary.sliding.rope_theta;
    return;
  }
  json["rope_scaling"] = nullptr;
  if (rotary.full.scaling != RotaryScaling::none) json["rope_scaling"] = parameters_of(rotary.full);
}

}  // namespace flashmha::model
