// A safetensors file inside of a larger change: written, but published by the caller.
#pragma once

#include <map>
#include <span>
#include <string>

#include "flashmha/safetensors.h"
#include "io/file.h"

namespace flashmha::io {

// write_safetensors up to, and without, file.publish().
void write_safetensors(AtomicFile& file, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace flashmha::io
