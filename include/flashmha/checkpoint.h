// Model directories as Hugging Face's: config.json and weights in safetensors.
//
//   const std::unique_ptr<model::CausalLM> model = model::load_pretrained("Llama-3.2-1B");
//   model::save_pretrained(*model, "copy");
//
// Weights lie in model.safetensors, or in several files that model.safetensors.index.json lists; if
// both are there, the first counts. Each tensor must be there under its parameter's name
// (flashmha/model.h) and in its shape, in any floating type; what is missing, unexpected or of
// another shape is refused by name. Three exceptions:
//   - tensors named *.rotary_emb.inv_freq are ignored: they follow from the config;
//   - files of a bare decoder, whose names lack "model.", are read as if they had it;
//   - a lm_head.weight is accepted in a tied model if it equals model.embed_tokens.weight.
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
  // Of parameters and activations; default: the config's, but bfloat16 for float32 where flash
  // attention is to run on a GPU, which has none in float32.
  std::optional<DType> dtype{};
  Device device{};
  AttentionKind attention_kind = AttentionKind::flash;

  // What a model whose config says `configured` is made of.
  DType dtype_for(DType configured) const;
};

// The model of a directory: read_config, then the weights by name, converted to the dtype.
// Throws io, invalid_argument or unsupported, with the file and the tensors by name.
std::unique_ptr<CausalLM> load_pretrained(const std::string& directory,
                                          const LoadOptions& options = {});

// Replaces the weights of a model by those of a directory, whose config.json is not looked at. On
// an error of a file or a tensor that is checked beforehand, all but failing disks, the model is
// unchanged. Throws as load_pretrained.
void load_weights(CausalLM& model, const std::string& directory);

struct SaveOptions {
  // Weights are spread over several files such that none has more bytes of tensors; a single larger
  // tensor has a file of its own.
  std::int64_t max_shard_bytes = 5'000'000'000;
};

// Writes config.json and the weights, in the model's dtype, into the directory, which is made if
// there is none; its other files stay as they are. Everything is written and on the disk under
// temporary names before anything is replaced: on an error, a full disk for one, and if the process
// dies, the directory still has the old weights, all of them, or the new ones. (config.json is
// replaced just before: only if it says something else than before can a death in that moment leave
// a directory whose two parts do not belong together.) Throws io.
void save_pretrained(CausalLM& model, const std::string& directory,
                     const SaveOptions& options = {});

}  // namespace flashmha::model
