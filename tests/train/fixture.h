// Folders and data for the tests of training.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "flashmha/dataset.h"

namespace flashmha::test {

// A folder of its own, removed at the end.
class ScratchFolder {
 public:
  ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name = "") const { return (folder_ / name).string(); }

 private:
  std::filesystem::path folder_;
};

// Documents of up to `longest` tokens below vocab_size, each of three tokens in a loop. The highest
// token occurs.
train::Corpus repeating_corpus(std::int64_t num_documents, std::int64_t longest, std::uint64_t seed,
                               std::int64_t vocab_size = 50);

}  // namespace flashmha::test
