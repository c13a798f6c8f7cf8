// config.json to ModelConfig and back, in parts. `json` names the file in its errors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "flashmha/model.h"
#include "io/json.h"
#include "model/architectures.h"

namespace flashmha::model {

ModelConfig config_from_json(const io::JsonObject& json);

// The description as `architecture`; computes something else if that one cannot express config.
io::Json config_to_json(const ModelConfig& config, const Architecture& architecture);

// Empties config.layers if they all say the same, which then attention says.
void make_uniform(ModelConfig& config);

// Throws unsupported: "WHERE: KEY RULE; got VALUE".
[[noreturn]] void refuse_unsupported(const io::JsonObject& json, const std::string& key,
                                     std::string_view rule);

// Numbers in [least, most]; throws invalid_argument for others.
std::int64_t integer_between(const io::JsonObject& json, const std::string& key, std::int64_t least,
                             std::int64_t most);
double number_between(const io::JsonObject& json, const std::string& key, double least,
                      double most);

// The rotary embedding of layers that see everything, and of those with a window.
struct RotaryPair {
  nn::RotaryConfig full;
  nn::RotaryConfig sliding;
};
RotaryPair read_rotary(const io::JsonObject& json, const Architecture& architecture,
                       std::int64_t head_dim);
// Adds rope_theta and its relatives to the object json.
void write_rotary(const RotaryPair& rotary, const Architecture& architecture, io::Json& json);

// What a value of config.json stands for, or none if it stands for nothing we compute.
std::optional<ops::Activation> activation_of(std::string_view name);
std::string_view activation_name(ops::Activation activation);

}  // namespace flashmha::model
