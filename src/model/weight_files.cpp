#include "model/weight_files.h"

#include <filesystem>
#include <utility>

#include "core/check.h"
#include "io/json.h"

namespace flashmha::model {
namespace {

// A file of the directory itself: an index must not lead elsewhere.
bool is_plain_name(std::string_view name) {
  return name.ends_with(".safetensors") && name.find('/') == name.npos &&
         name.find('\0') == name.npos;
}

bool exists(const std::string& directory, std::string_view name) {
  std::error_code ignored;
  return std::filesystem::exists(std::filesystem::path(directory) / name, ignored);
}

std::string path_of(const std::string& directory, std::string_view name) {
  return (std::filesystem::path(directory) / name).string();
}

}  // namespace

WeightFiles::WeightFiles(const std::string& directory, std::string function)
    : where_("[" + std::move(function) + "] " + directory) {
  if (exists(directory, kWeightsFile)) {
    files_.emplace_back(path_of(directory, kWeightsFile));
    for (const io::SafetensorsEntry& entry : files_[0].entries())
      file_of_[entry.name] = 0;
  } else if (exists(directory, kIndexFile)) {
    open_sharded(directory);
  } else if (exists(directory, "pytorch_model.bin") ||
             exists(directory, "pytorch_model.bin.index.json")) {
    fail(ErrorCode::unsupported,
         "{}: the weights are pickled (pytorch_model.bin); only safetensors are read", where_);
  } else {
    fail(ErrorCode::io, "{}: there is neither {} nor {}", where_, kWeightsFile, kIndexFile);
  }
}

void WeightFiles::open_sharded(const std::string& directory) {
  const std::string index_where = where_ + "/" + std::string(kIndexFile);
  const io::Json json = io::read_json_file(path_of(directory, kIndexFile), index_where);
  const io::JsonObject weight_map = io::JsonObject(json, index_where).object("weight_map");
  std::map<std::string, std::size_t> files;
  for (const auto& [name, value] : weight_map.value().items()) {
    const std::string file = weight_map.text(name);
    if (!is_plain_name(file)) {
      weight_map.refuse(name, "must be the name of a .safetensors file beside the index");
    }
    const auto [found, is_new] = files.try_emplace(file, files_.size());
    if (is_new) {
      if (!exists(directory, file)) {
        fail(ErrorCode::io, "{}: the file {} is missing", index_where, io::quote(file));
      }
      files_.emplace_back(path_of(directory, file));
    }
    check(files_[found->second].contains(name), "{}: {} has no tensor {}", index_where, file,
          io::quote(name));
    file_of_[name] = found->second;
  }
  for (std::size_t i = 0; i < files_.size(); ++i) {
    for (const io::SafetensorsEntry& entry : files_[i].entries()) {
      const auto found = file_of_.find(entry.name);
      check(found != file_of_.end() && found->second == i,
            "{}: does not say that {} is in {}, as it is", index_where, io::quote(entry.name),
            files_[i].path());
    }
  }
}

}  // namespace flashmha::model
