// A truth file: tensors, and in its metadata what the script that made it says about them.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "flashmha/safetensors.h"

namespace flashmha::truth {

class File {
 public:
  explicit File(const std::string& path)
      : file_(path), about_(nlohmann::json::parse(file_.metadata().at("truth"))) {
    for (const io::SafetensorsEntry& entry : file_.entries())
      tensors_[entry.name] = file_.view(entry.name);
  }

  // The tensor, or a view that is not defined.
  TensorView find(const std::string& name) const {
    return file_.contains(name) ? file_.view(name) : TensorView{};
  }
  TensorView get(const std::string& name) const { return file_.view(name); }
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const nlohmann::json& about() const { return about_; }

 private:
  io::SafetensorsFile file_;
  std::map<std::string, TensorView> tensors_;
  nlohmann::json about_;
};

}  // namespace flashmha::truth
