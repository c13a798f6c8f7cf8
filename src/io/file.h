// Files as the library needs them: read through the page cache, replaced in one step.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace flashmha::io {

// A file descriptor, closed at the end.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor() { close(); }

  int get() const { return value_; }
  bool is_open() const { return value_ >= 0; }
  int release() noexcept;
  void close() noexcept;

 private:
  int value_ = -1;
};

// The bytes of a regular file, mapped for reading: nothing is read before it is looked at. Somebody
// who cuts the file off while it is mapped ends this process with SIGBUS; files that are replaced
// as AtomicFile does it are safe.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws io
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::string path_;
  std::span<const std::byte> bytes_;
};

// The whole of a regular file. Throws io, also if it has more than max_bytes bytes.
std::string read_text_file(const std::string& path, std::size_t max_bytes);

// A file that appears, or replaces another of its name, whole or not at all: written under a
// temporary name in the same folder (".NAME.tmp"), brought to the disk, then renamed. When anything
// fails, and when the process dies, what had the name before still has it. A temporary file that a
// dead process left behind is used again; of two live writers the second is refused. Functions
// throw io.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  AtomicFile(AtomicFile&&) noexcept = default;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();  // removes the temporary file if it was not published

  const std::string& path() const { return path_; }

  // Takes room on the disk, so that a full one is noticed at once. Does nothing where the file
  // system cannot.
  void reserve(std::size_t bytes);
  void write(std::span<const std::byte> bytes);  // at the end of what was written
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  void sync();     // to the disk; nothing may be written afterwards
  void rename();   // gives it its name; a power cut may take that back before sync_folder
  void publish();  // sync, rename and sync_folder

 private:
  [[noreturn]] void give_up(const char* what) const;

  std::string path_;
  std::string temporary_path_;
  Descriptor file_;
  bool is_synced_ = false;
};

// Removes the temporary file that a dead AtomicFile of that path left behind, if there is one.
void remove_abandoned(const std::string& path);

// Replaces or makes a small file.
void write_text_file(const std::string& path, std::string_view text);

// Makes renames and removals in a folder outlast a power cut.
void sync_folder(const std::string& folder);

// The folder of a path: "a/b" -> "a", "b" -> ".".
std::string folder_of(const std::string& path);

}  // namespace flashmha::io
