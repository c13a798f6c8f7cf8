// A minimal reader of safetensors files for the tests: an 8-byte header length, a JSON header with
// dtype, shape and byte range of every tensor, then the bytes
// (https://huggingface.co/docs/safetensors, "Format").
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

#include "flashmha/flashmha.h"

namespace flashmha::truth {

inline DType parse_dtype(const std::string& name) {
  static const std::map<std::string, DType> dtypes = {
      {"F64", DType::float64},  {"F32", DType::float32}, {"BF16", DType::bfloat16},
      {"F16", DType::float16},  {"I32", DType::int32},   {"I64", DType::int64},
      {"BOOL", DType::boolean},
  };
  return dtypes.at(name);
}

// Owns the bytes of a file; the tensors are views of them.
class File {
 public:
  explicit File(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    std::uint64_t header_bytes = 0;
    stream.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
    if (!stream) throw std::runtime_error("cannot read " + path);
    std::string header(header_bytes, '\0');
    stream.read(header.data(), static_cast<std::streamsize>(header_bytes));
    const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
    bytes_ = Tensor::empty({static_cast<std::int64_t>(bytes.size())}, DType::boolean);
    std::memcpy(bytes_.view().data, bytes.data(), bytes.size());

    const nlohmann::json entries = nlohmann::json::parse(header);
    for (const auto& [name, entry] : entries.items()) {
      if (name == "__metadata__") {
        about_ = nlohmann::json::parse(entry.at("truth").get<std::string>());
      } else {
        tensors_[name] = view_of_entry(entry, bytes.size(), path);
      }
    }
  }

  // The tensor, or a view that is not defined.
  TensorView find(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? TensorView{} : found->second;
  }
  TensorView get(const std::string& name) const {
    const TensorView view = find(name);
    if (!view.defined()) throw std::runtime_error("the truth file has no tensor " + name);
    return view;
  }
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  // What the script that made the file says about it.
  const nlohmann::json& about() const { return about_; }

 private:
  TensorView view_of_entry(const nlohmann::json& entry, std::size_t num_bytes,
                           const std::string& path) const {
    const auto sizes = entry.at("shape").get<std::vector<std::int64_t>>();
    const std::size_t begin = entry.at("data_offsets").at(0);
    TensorView view;
    view.data = static_cast<char*>(bytes_.view().data) + begin;
    view.dtype = parse_dtype(entry.at("dtype"));
    view.shape = Shape(sizes);
    view.strides = contiguous_strides(view.shape);
    if (begin + view.bytes() > num_bytes) throw std::runtime_error(path + " is cut off");
    return view;
  }

  Tensor bytes_;
  std::map<std::string, TensorView> tensors_;
  nlohmann::json about_;
};

}  // namespace flashmha::truth
