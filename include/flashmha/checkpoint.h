// Model directories as Hugging Face's: config.json and weights in safetensors.
//
//   const std::unique_ptr<model::CausalLM> model = model::load_pretrained("Llama-3.2-1B");
//   model::save_pretrained(*model, "copy");
//
// Weights are in model.safetensors, or in several files that model.safetensors.index.json lists.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "flashmha/model.h"

namespace flashmha::model {

// The config of directory/config.json, with the dtype that it names (float32 if it names none).
// Throws io if the file cannot be read, invalid_argument if it contradicts itself, unsupported,
// with the name of the field, for what this version does not compute.
ModelConfig read_config(const std::string& directory);

// Replaces or makes directory/config.json in one step: the description of the same model for
// Transformers. Throws io.
void write_config(const ModelConfig& config, const std::string& directory);

struct LoadOptions {
  std::optional<DType> dtype{};  // of parameters and activations; default: the config's
  Device device{};
  AttentionKind attention_kind = AttentionKind::flash;
};

// The model of a directory: read_config, then the weights by name, converted to the dtype.
// Throws io, invalid_argument or unsupported, with the file and the tensors by name.
std::unique_ptr<CausalLM> load_pretrained(const std::string& directory,
                                          const LoadOptions& options = {});

struct SaveOptions {
  // Tensors are spread over several files such that none has more bytes, one tensor at least.
  std::int64_t max_shard_bytes = 5'000'000'000;
};

// Writes config.json and the weights; other files of the directory stay as they are. The directory
// is made if there is none.
void save_pretrained(CausalLM& model, const std::string& directory,
                     const SaveOptions& options = {});

}  // namespace flashmha::model
