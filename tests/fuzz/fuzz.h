// What the fuzz targets share. A target is a function of bytes that somebody else made:
//
//   extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
//
// It passes if the library throws an Error or nothing; everything else ends the program, and the
// input is kept.
#pragma once

#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "flashmha/error.h"

namespace flashmha::fuzz {

// Ends the program if a promise is broken.
inline void require(bool condition) {
  if (!condition) abort();
}

// A folder of this process, in memory where the system has such a place.
inline const std::string& folder() {
  static const struct Folder {
    std::string path;
    Folder() {
      const bool has_shm = std::filesystem::is_directory("/dev/shm");
      path = (has_shm ? "/dev/shm" : std::filesystem::temp_directory_path().string()) +
             "/flashmha-fuzz-XXXXXX";
      if (!mkdtemp(path.data())) abort();
    }
    ~Folder() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
  } folder;
  return folder.path;
}

// Writes a file of the folder and returns its path.
inline std::string write(const std::string& name, std::string_view bytes) {
  const std::string path = folder() + "/" + name;
  std::ofstream stream(path, std::ios::binary);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!stream.flush()) abort();
  return path;
}

// True if the function returned, false if it threw an Error, whose message must name its function.
template <class Function>
bool accepts(Function&& function) {
  try {
    function();
    return true;
  } catch (const Error& error) {
    require(std::string_view(error.what()).starts_with('['));
    return false;
  }
}

}  // namespace flashmha::fuzz
