// From a model to a model directory. Order is everything here:
//   1. weights and index under temporary names, synced to the disk: may fail, nothing has changed
//   2. config.json
//   3. the new weights get their names; none of these names is in use, but that of the file which
//      readers look at first: with its renaming or removal the new weights count, all at once
//   4. what the old weights leave behind is removed
#include <algorithm>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/check.h"
#include "flashmha/checkpoint.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors_write.h"
#include "model/weight_files.h"

namespace flashmha::model {
namespace {

using Path = std::filesystem::path;

// Cuts the tensors into runs of at most max_bytes.
std::vector<std::span<const io::NamedTensor>> split(std::span<const io::NamedTensor> tensors,
                                                    std::int64_t max_bytes) {
  std::vector<std::span<const io::NamedTensor>> shards;
  std::size_t begin = 0;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::size_t more = tensors[i].tensor.bytes();
    if (i > begin && bytes + more > static_cast<std::size_t>(max_bytes)) {
      shards.push_back(tensors.subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += more;
  }
  shards.push_back(tensors.subspan(begin));
  return shards;
}

// Names of shards as everybody writes them; with a number in them while those are taken.
std::vector<std::string> shard_names(const Path& directory, std::size_t num_shards) {
  for (int generation = 1;; ++generation) {
    const std::string stem = generation == 1 ? "model" : fmt::format("model.{}", generation);
    std::vector<std::string> names;
    for (std::size_t i = 1; i <= num_shards; ++i) {
      names.push_back(fmt::format("{}-{:05}-of-{:05}.safetensors", stem, i, num_shards));
    }
    const auto is_taken = [&](const std::string& name) {
      return std::filesystem::exists(std::filesystem::symlink_status(directory / name));
    };
    if (std::ranges::none_of(names, is_taken)) return names;
  }
}

bool is_weights_name(const std::string& name) {
  const bool is_shard =
      name.starts_with("model") && name.ends_with(".safetensors") && name.find("-of-") != name.npos;
  return is_shard || name == kWeightsFile || name == kIndexFile;
}

std::string index_of(std::span<const std::span<const io::NamedTensor>> shards,
                     std::span<const std::string> names) {
  nlohmann::ordered_json index;
  std::size_t total_bytes = 0;
  std::int64_t num_parameters = 0;
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const auto& [name, tensor] : shards[i]) {
      weight_map[name] = names[i];
      total_bytes += tensor.bytes();
      num_parameters += tensor.numel();
    }
  }
  index["metadata"] = {{"total_size", total_bytes}, {"total_parameters", num_parameters}};
  index["weight_map"] = std::move(weight_map);
  return index.dump(2) + "\n";
}

// Removes weights that are not among the names, and what saves that died have left.
void remove_others(const Path& directory, const std::vector<std::string>& names) {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    found.push_back(entry.path().filename().string());
  for (const std::string& name : found) {
    if (is_weights_name(name) && std::ranges::find(names, name) == names.end()) {
      std::filesystem::remove(directory / name);
    } else if (name.starts_with('.') && name.ends_with(".tmp")) {
      const std::string final_name = name.substr(1, name.size() - 5);
      if (is_weights_name(final_name)) io::remove_abandoned((directory / final_name).string());
    }
  }
}

void save(CausalLM& model, const Path& directory, const SaveOptions& options) {
  std::vector<io::NamedTensor> tensors;
  model.visit([&](const std::string& name, nn::Parameter& parameter) {
    tensors.push_back({name, parameter.value});
  });
  const auto shards = split(tensors, options.max_shard_bytes);
  std::vector<std::string> names = shards.size() == 1 ? std::vector{std::string(kWeightsFile)}
                                                      : shard_names(directory, shards.size());
  std::vector<io::AtomicFile> files;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    files.emplace_back((directory / names[i]).string());
    // Transformers refuses files that do not say "pt".
    io::write_safetensors(files.back(), shards[i], {{"format", "pt"}});
    files.back().sync();
  }
  if (shards.size() > 1) {
    files.emplace_back((directory / kIndexFile).string()).write(index_of(shards, names));
    files.back().sync();
    names.emplace_back(kIndexFile);
  }
  write_config(model.config(), directory.string());
  for (io::AtomicFile& file : std::span(files).first(files.size() - 1))
    file.rename();
  if (files.size() > 1) io::sync_folder(directory.string());
  files.back().publish();
  // Readers prefer a single file to an index: with its removal shards begin to count.
  if (shards.size() > 1) std::filesystem::remove(directory / kWeightsFile);
  remove_others(directory, names);
  io::sync_folder(directory.string());
}

}  // namespace

void save_pretrained(CausalLM& model, const std::string& directory, const SaveOptions& options) {
  check(options.max_shard_bytes > 0, "[save_pretrained] max_shard_bytes must be positive; got {}",
        options.max_shard_bytes);
  try {
    std::filesystem::create_directories(directory);
    save(model, directory, options);
  } catch (const std::filesystem::filesystem_error& error) {
    fail(ErrorCode::io, "[save_pretrained] {}: {}", directory, error.what());
  }
}

}  // namespace flashmha::model
