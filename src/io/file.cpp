#include "io/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/check.h"

namespace flashmha::io {
namespace {

// Linux moves at most 2^31 - 4096 bytes a call.
constexpr std::size_t kMostBytesPerCall = std::size_t{1} << 30;

[[noreturn]] void fail_to(const char* function, const char* what, const std::string& path) {
  fail(ErrorCode::io, "[{}] cannot {} {}: {}", function, what, path, std::strerror(errno));
}

// Opens a regular file for reading; its size goes to num_bytes.
Descriptor open_regular(const char* function, const std::string& path, std::size_t& num_bytes) {
  // Without O_NONBLOCK a pipe of that name would be waited for.
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.is_open()) fail_to(function, "open", path);
  struct stat status {};
  if (fstat(file.get(), &status) != 0) fail_to(function, "look at", path);
  if (!S_ISREG(status.st_mode)) {
    fail(ErrorCode::io, "[{}] {} is not a regular file", function, path);
  }
  num_bytes = static_cast<std::size_t>(status.st_size);
  return file;
}

bool same_file(int descriptor, const std::string& path) {
  struct stat opened {};
  struct stat named {};
  return fstat(descriptor, &opened) == 0 && lstat(path.c_str(), &named) == 0 &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

std::string temporary_path_of(const std::string& path) {
  return folder_of(path) + "/." + std::filesystem::path(path).filename().string() + ".tmp";
}

// Opens the temporary file and locks it. A writer that published in the meantime has moved the file
// that was opened to its final name: then again.
Descriptor open_temporary(const std::string& path, const std::string& temporary_path) {
  while (true) {
    Descriptor file(
        open(temporary_path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666));
    if (!file.is_open()) fail_to("AtomicFile", "write", path);
    if (flock(file.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      fail(ErrorCode::io, "[AtomicFile] cannot write {}: another writer is at it ({})", path,
           temporary_path);
    }
    if (same_file(file.get(), temporary_path)) return file;
  }
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    close();
    value_ = other.release();
  }
  return *this;
}

int Descriptor::release() noexcept {
  return std::exchange(value_, -1);
}

void Descriptor::close() noexcept {
  if (is_open()) ::close(release());
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
  std::size_t num_bytes = 0;
  const Descriptor file = open_regular("MappedFile", path, num_bytes);
  if (num_bytes == 0) return;  // nothing to map
  void* const data = mmap(nullptr, num_bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) fail_to("MappedFile", "map", path);
  bytes_ = {static_cast<const std::byte*>(data), num_bytes};
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

std::string read_text_file(const std::string& path, std::size_t max_bytes) {
  std::size_t num_bytes = 0;
  const Descriptor file = open_regular("read_text_file", path, num_bytes);
  if (num_bytes > max_bytes) {
    fail(ErrorCode::io, "[read_text_file] {} may have at most {} bytes; got {}", path, max_bytes,
         num_bytes);
  }
  std::string text(num_bytes, '\0');
  std::size_t end = 0;
  while (end < num_bytes) {
    const ssize_t count = read(file.get(), text.data() + end, num_bytes - end);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_to("read_text_file", "read", path);
    if (count == 0) break;  // somebody cut it off
    end += static_cast<std::size_t>(count);
  }
  text.resize(end);
  return text;
}

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)),
      temporary_path_(folder_of(path_) + "/." + std::filesystem::path(path_).filename().string() +
                      ".tmp"),
      file_(open_temporary(path_, temporary_path_)) {
  if (ftruncate(file_.get(), 0) != 0) give_up("write");
}

AtomicFile::~AtomicFile() {
  if (file_.is_open()) unlink(temporary_path_.c_str());
}

void AtomicFile::give_up(const char* what) const {
  fail(ErrorCode::io, "[AtomicFile] cannot {} {}: {}; nothing was overwritten", what, path_,
       std::strerror(errno));
}

void AtomicFile::reserve(std::size_t bytes) {
  if (bytes == 0) return;
  if (fallocate(file_.get(), FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) != 0 &&
      (errno == ENOSPC || errno == EFBIG || errno == EDQUOT)) {
    give_up("write");
  }
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count =
        ::write(file_.get(), bytes.data(), std::min(bytes.size(), kMostBytesPerCall));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) give_up("write");
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
}

void AtomicFile::sync() {
  if (!is_synced_ && fsync(file_.get()) != 0) give_up("write");
  is_synced_ = true;
}

void AtomicFile::rename() {
  sync();
  if (std::rename(temporary_path_.c_str(), path_.c_str()) != 0) give_up("replace");
  file_.close();
}

void AtomicFile::publish() {
  rename();
  sync_folder(folder_of(path_));
}

void remove_abandoned(const std::string& path) {
  const std::string temporary_path = temporary_path_of(path);
  const Descriptor file(open(temporary_path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file.is_open() || flock(file.get(), LOCK_EX | LOCK_NB) != 0) return;
  if (same_file(file.get(), temporary_path)) unlink(temporary_path.c_str());
}

void write_text_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.publish();
}

void sync_folder(const std::string& folder) {
  const Descriptor file(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!file.is_open()) fail_to("sync_folder", "open", folder);
  // Some file systems have nothing to do here and say so with EINVAL.
  if (fsync(file.get()) != 0 && errno != EINVAL) fail_to("sync_folder", "sync", folder);
}

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

}  // namespace flashmha::io
