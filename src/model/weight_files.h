// The weights of a model directory: which file has which tensor.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "flashmha/safetensors.h"

namespace flashmha::model {

inline constexpr std::string_view kWeightsFile = "model.safetensors";
inline constexpr std::string_view kIndexFile = "model.safetensors.index.json";

class WeightFiles {
 public:
  // Opens the files and checks that index and files agree. `function` begins the messages of
  // errors. Throws io, invalid_argument or unsupported.
  WeightFiles(const std::string& directory, std::string function);

  bool contains(const std::string& name) const { return file_of_.contains(name); }
  const io::SafetensorsEntry& entry(const std::string& name) const {
    return file(name).entry(name);
  }
  const io::SafetensorsFile& file(const std::string& name) const {
    return files_[file_of_.at(name)];
  }
  // All tensors and the index of their file.
  const std::map<std::string, std::size_t>& names() const { return file_of_; }
  // "[function] directory": how messages begin.
  const std::string& where() const { return where_; }

 private:
  void open_sharded(const std::string& directory);

  std::string where_;
  std::vector<io::SafetensorsFile> files_;
  std::map<std::string, std::size_t> file_of_;
};

}  // namespace flashmha::model
