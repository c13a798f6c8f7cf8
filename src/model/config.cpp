// ModelConfig: the config of one layer, and the default model.
#include <algorithm>

#include "core/check.h"
#include "flashmha/model.h"
#include "model/config_json.h"

namespace flashmha::model {

std::string_view attention_kind_name(AttentionKind kind) {
  return kind == AttentionKind::plain ? "plain" : "flash";
}

nn::AttentionConfig ModelConfig::attention_config(std::int64_t layer) const {
  check(layer >= 0 && layer < num_layers,
        "[ModelConfig::attention_config] layer must be in [0, {}); got {}", num_layers, layer);
  check(layers.empty() || static_cast<std::int64_t>(layers.size()) == num_layers,
        "[ModelConfig] layers must have num_layers ({}) elements, or none; got {}", num_layers,
        layers.size());
  nn::AttentionConfig config = attention;
  config.layer_index = layer;
  if (!layers.empty()) {
    const LayerConfig& own = layers[static_cast<std::size_t>(layer)];
    config.sliding_window = own.sliding_window;
    config.rotary = own.rotary;
  }
  return config;
}

bool ModelConfig::has_sliding_window() const {
  if (layers.empty()) return attention.sliding_window > 0;
  return std::ranges::any_of(layers, [](const LayerConfig& own) { return own.sliding_window > 0; });
}

bool ModelConfig::has_dynamic_rotary() const {
  const auto is_dynamic = [](const std::optional<nn::RotaryConfig>& rotary) {
    return rotary && rotary->scaling == nn::RotaryScaling::dynamic_ntk;
  };
  if (layers.empty()) return is_dynamic(attention.rotary);
  return std::ranges::any_of(layers,
                             [&](const LayerConfig& own) { return is_dynamic(own.rotary); });
}

void make_uniform(ModelConfig& config) {
  if (config.layers.empty()) return;
  const LayerConfig& first = config.layers.front();
  const auto same = [&](const LayerConfig& layer) { return layer == first; };
  if (!std::ranges::all_of(config.layers, same)) return;
  config.attention.sliding_window = first.sliding_window;
  config.attention.rotary = first.rotary;
  config.layers.clear();
}

ModelConfig default_config() {
  ModelConfig config{.vocab_size = 2048, .intermediate_size = 1376, .num_layers = 4};
  config.attention.hidden_size = 512;
  config.attention.num_heads = 8;
  config.attention.num_kv_heads = 8;
  config.attention.head_dim = 64;
  config.attention.rotary = nn::RotaryConfig{};
  return config;
}

}  // namespace flashmha::model
