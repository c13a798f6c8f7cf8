// The output directory of a training run: one writer, a log, checkpoints that appear when they are
// complete.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"

namespace flashmha::train {

class RunDirectory {
 public:
  // Makes the directory if there is none, and locks it for the life of the object. Throws io, and
  // invalid_argument if another process has it.
  explicit RunDirectory(const std::string& path);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path log_path() const { return path_ / "log.jsonl"; }
  std::filesystem::path checkpoint_path(std::int64_t step) const;
  // Steps of the complete checkpoints, rising.
  std::vector<std::int64_t> checkpoints() const;
  bool is_empty() const { return checkpoints().empty() && !std::filesystem::exists(log_path()); }

  // Removes what an interrupted run left unfinished.
  void clean() const;

  // Keeps the log's complete lines up to `step`, and opens it for the next ones.
  void start_log(std::int64_t step);
  void append_to_log(std::string_view line);  // without its newline

  // write(folder) fills a folder, which then becomes the checkpoint of `step`; of the older ones
  // the last keep - 1 stay (keep 0: all). If anything fails nothing has changed.
  void publish(std::int64_t step, std::int64_t keep,
               const std::function<void(const std::string& folder)>& write) const;

 private:
  std::filesystem::path path_;
  io::Descriptor lock_;
  io::Descriptor log_;
};

// Steps of the complete checkpoints in a folder, rising; none if the folder is absent.
std::vector<std::int64_t> list_checkpoints(const std::filesystem::path& folder);

}  // namespace flashmha::train
