#include "train/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <system_error>

#include "core/check.h"
#include "flashmha/trainer.h"
#include "train/log.h"

namespace flashmha::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "checkpoint-";
constexpr std::string_view kUnfinished = ".tmp";  // ".checkpoint-STEP.tmp"

fs::path unfinished_path(const fs::path& checkpoint) {
  return checkpoint.parent_path() /
         ("." + checkpoint.filename().string() + std::string(kUnfinished));
}

// The number in "checkpoint-NUMBER", written as we write it.
std::optional<std::int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return {};
  const std::string_view digits = std::string_view(name).substr(kPrefix.size());
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (error != std::errc() || end != digits.data() + digits.size()) return {};
  if (step < 0 || std::to_string(step) != digits) return {};
  return step;
}

[[noreturn]] void fail_writing(const fs::path& path, int error) {
  fail(ErrorCode::io, "[Trainer] cannot write '{}': {}", path.string(), std::strerror(error));
}

// A folder that is half removed must not look like a checkpoint.
void remove_checkpoint(const fs::path& path) {
  const fs::path unfinished = unfinished_path(path);
  fs::remove_all(unfinished);
  fs::rename(path, unfinished);
  fs::remove_all(unfinished);
}

}  // namespace

std::vector<std::int64_t> list_checkpoints(const fs::path& folder) {
  std::vector<std::int64_t> steps;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::optional<std::int64_t> step = step_of(entry->path().filename().string());
    if (step && entry->is_directory()) steps.push_back(*step);
  }
  std::ranges::sort(steps);
  return steps;
}

std::optional<std::string> latest_checkpoint(const std::string& output) {
  const std::vector<std::int64_t> steps = list_checkpoints(output);
  if (steps.empty()) return {};
  return (fs::path(output) / (std::string(kPrefix) + std::to_string(steps.back()))).string();
}

RunDirectory::RunDirectory(const std::string& path) : path_(path) {
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) fail_writing(path_, error.value());
  lock_ = io::Descriptor(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock_.is_open()) fail_writing(path_, errno);
  check(::flock(lock_.get(), LOCK_EX | LOCK_NB) == 0,
        "[Trainer] another process is writing to '{}'", path);
}

fs::path RunDirectory::checkpoint_path(std::int64_t step) const {
  return path_ / (std::string(kPrefix) + std::to_string(step));
}

std::vector<std::int64_t> RunDirectory::checkpoints() const {
  return list_checkpoints(path_);
}

void RunDirectory::clean() const {
  std::vector<fs::path> unfinished;
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("." + std::string(kPrefix)) && name.ends_with(kUnfinished)) {
      unfinished.push_back(entry.path());
    }
  }
  for (const fs::path& path : unfinished)
    fs::remove_all(path);
}

void RunDirectory::start_log(std::int64_t step) {
  std::string kept;
  for (const std::string& line : read_log_lines(log_path(), step))
    kept += line + "\n";
  io::write_text_file(log_path().string(), kept);
  log_ = io::Descriptor(::open(log_path().c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
  if (!log_.is_open()) fail_writing(log_path(), errno);
}

void RunDirectory::append_to_log(std::string_view line) {
  const std::string text = std::string(line) + "\n";
  std::string_view rest = text;
  while (!rest.empty()) {
    const ssize_t written = ::write(log_.get(), rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_writing(log_path(), errno);
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
}

void RunDirectory::publish(std::int64_t step, std::int64_t keep,
                           const std::function<void(const std::string&)>& write) const {
  const fs::path checkpoint = checkpoint_path(step);
  const fs::path unfinished = unfinished_path(checkpoint);
  try {
    fs::remove_all(unfinished);
    fs::create_directory(unfinished);
    write(unfinished.string());
    io::sync_folder(unfinished.string());
    // The log must not be behind the checkpoint, whatever survives a power cut.
    if (log_.is_open() && ::fsync(log_.get()) != 0) fail_writing(log_path(), errno);
    fs::rename(unfinished, checkpoint);
    io::sync_folder(path_.string());
    const std::vector<std::int64_t> steps = checkpoints();
    const std::size_t excess = keep > 0 && steps.size() > static_cast<std::size_t>(keep)
                                   ? steps.size() - static_cast<std::size_t>(keep)
                                   : 0;
    for (std::size_t i = 0; i < excess; ++i)
      remove_checkpoint(checkpoint_path(steps[i]));
  } catch (const std::exception& error) {
    std::error_code ignored;
    fs::remove_all(unfinished, ignored);
    fail(ErrorCode::io,
         "[Trainer] the checkpoint of step {} was not written, earlier ones stay: {}", step,
         error.what());
  }
}

}  // namespace flashmha::train
