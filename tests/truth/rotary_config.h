// Transformers' rope parameters, as the truth files give them, as ours: the names are the same.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "flashmha/nn.h"

namespace flashmha::truth {

// description: head_dim, max_position_embeddings and rope parameters.
inline nn::RotaryConfig rotary_config(const nlohmann::json& description,
                                      const nlohmann::json& parameters) {
  static const std::map<std::string, nn::RotaryScaling> scalings = {
      {"default", nn::RotaryScaling::none},        {"linear", nn::RotaryScaling::linear},
      {"dynamic", nn::RotaryScaling::dynamic_ntk}, {"yarn", nn::RotaryScaling::yarn},
      {"llama3", nn::RotaryScaling::llama3},
  };
  nn::RotaryConfig config{.head_dim = description.at("head_dim"),
                          .max_position_embeddings = description.at("max_position_embeddings"),
                          .scaling = scalings.at(parameters.at("rope_type"))};
  const auto read = [&](const char* key, auto& member) { member = parameters.value(key, member); };
  read("partial_rotary_factor", config.partial_rotary_factor);
  read("rope_theta", config.rope_theta);
  read("factor", config.factor);
  read("original_max_position_embeddings", config.original_max_position_embeddings);
  read("beta_fast", config.beta_fast);
  read("beta_slow", config.beta_slow);
  read("mscale", config.mscale);
  read("mscale_all_dim", config.mscale_all_dim);
  read("truncate", config.truncate);
  read("low_freq_factor", config.low_freq_factor);
  read("high_freq_factor", config.high_freq_factor);
  if (parameters.contains("attention_factor")) {
    config.attention_factor = parameters.at("attention_factor").get<double>();
  }
  return config;
}

}  // namespace flashmha::truth
