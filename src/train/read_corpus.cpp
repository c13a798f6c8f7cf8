// From files to documents to tokens.
#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>
#include <system_error>

#include "core/check.h"
#include "core/parallel.h"
#include "flashmha/dataset.h"
#include "flashmha/device.h"
#include "flashmha/tokenizer.h"
#include "io/file.h"
#include "io/json.h"

namespace flashmha::train {
namespace {

namespace fs = std::filesystem;

struct Source {
  fs::path path;
  bool is_named = false;  // by the caller, not found in a folder
};

[[noreturn]] void fail_reading(const fs::path& path, const std::string& reason) {
  fail(ErrorCode::io, "[read_corpus] cannot read '{}': {}", path.string(), reason);
}

// Files below a folder, by path.
std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  try {
    for (fs::recursive_directory_iterator entry(folder), end; entry != end; ++entry) {
      const bool is_hidden = entry->path().filename().string().starts_with('.');
      if (is_hidden && entry->is_directory()) entry.disable_recursion_pending();
      if (!is_hidden && entry->is_regular_file()) files.push_back(entry->path());
    }
  } catch (const fs::filesystem_error& error) {
    fail_reading(error.path1().empty() ? folder : error.path1(), error.code().message());
  }
  std::ranges::sort(files, {}, [](const fs::path& path) { return path.generic_string(); });
  return files;
}

std::vector<Source> find_sources(std::span<const std::string> paths) {
  std::vector<Source> sources;
  std::set<std::string> seen;
  const auto add = [&](const fs::path& path, bool is_named) {
    std::error_code error;
    const fs::path canonical = fs::canonical(path, error);
    if (error) fail_reading(path, error.message());
    if (!seen.insert(canonical.string()).second) return;
    sources.push_back({.path = path, .is_named = is_named});
  };
  for (const std::string& path : paths) {
    std::error_code error;
    const bool is_folder = fs::is_directory(path, error);
    if (error) fail_reading(path, error.message());
    if (!is_folder) add(path, /*is_named=*/true);
    if (!is_folder) continue;
    for (const fs::path& file : files_below(path))
      add(file, /*is_named=*/false);
  }
  return sources;
}

// Calls visitor(part) for the parts of text between separators.
template <class Visitor>
void for_each_part(std::string_view text, std::string_view separator, Visitor visitor) {
  while (!separator.empty()) {
    const std::size_t at = text.find(separator);
    if (at == std::string_view::npos) break;
    visitor(text.substr(0, at));
    text.remove_prefix(at + separator.size());
  }
  visitor(text);
}

void add_json_lines(const fs::path& path, std::string_view text,
                    std::vector<std::string>& documents) {
  std::int64_t number = 0;
  for_each_part(text, "\n", [&](std::string_view line) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
    const std::string where = fmt::format("[read_corpus] '{}' line {}", path.string(), number);
    const io::Json value = io::parse_json(line, where);
    documents.push_back(io::JsonObject(value, where).text("text"));
  });
}

// Documents wait here until there are enough of them to keep all threads busy.
class Encoder {
 public:
  Encoder(const text::Tokenizer& tokenizer, Corpus& corpus)
      : tokenizer_(tokenizer), corpus_(corpus) {}

  void add(std::string document) {
    if (document.empty()) return;
    num_bytes_ += document.size();
    documents_.push_back(std::move(document));
    if (num_bytes_ >= kBlockBytes) flush();
  }

  void flush() {
    const auto count = static_cast<std::int64_t>(documents_.size());
    std::vector<std::vector<std::int64_t>> tokens(documents_.size());
    parallel_for(count, num_threads(), [&](std::int64_t task, int) {
      const auto index = static_cast<std::size_t>(task);
      tokens[index] = tokenizer_.encode(documents_[index]);
      const std::optional<std::int64_t> end = tokenizer_.eos_token_id();
      if (end && (tokens[index].empty() || tokens[index].back() != *end)) {
        tokens[index].push_back(*end);
      }
    });
    for (const std::vector<std::int64_t>& document : tokens)
      corpus_.add(document);
    documents_.clear();
    num_bytes_ = 0;
  }

 private:
  static constexpr std::size_t kBlockBytes = std::size_t{16} << 20;

  const text::Tokenizer& tokenizer_;
  Corpus& corpus_;
  std::vector<std::string> documents_;
  std::size_t num_bytes_ = 0;
};

void add_file(const Source& source, const CorpusOptions& options, Encoder& encoder,
              CorpusReport& report) {
  const std::string text =
      io::read_text_file(source.path.string(), std::numeric_limits<std::size_t>::max());
  if (text.empty()) {
    ++report.num_empty_files;
    return;
  }
  if (const std::size_t at = text.find('\0'); at != std::string::npos) {
    check(!source.is_named, "[read_corpus] '{}' is no text: byte {} is NUL", source.path.string(),
          at);
    ++report.num_binary_files;
    return;
  }
  ++report.num_files;
  report.num_bytes += static_cast<std::int64_t>(text.size());
  if (source.path.extension() == ".jsonl") {
    std::vector<std::string> documents;
    add_json_lines(source.path, text, documents);
    for (std::string& document : documents)
      encoder.add(std::move(document));
  } else {
    for_each_part(text, options.document_separator,
                  [&](std::string_view part) { encoder.add(std::string(part)); });
  }
}

}  // namespace

Corpus read_corpus(std::span<const std::string> paths, const text::Tokenizer& tokenizer,
                   const CorpusOptions& options, CorpusReport* report) {
  const std::vector<Source> sources = find_sources(paths);
  Corpus corpus;
  CorpusReport found;
  Encoder encoder(tokenizer, corpus);
  for (const Source& source : sources) {
    if (options.on_file) {
      options.on_file(source.path.string(), static_cast<std::int64_t>(sources.size()));
    }
    add_file(source, options, encoder, found);
  }
  encoder.flush();
  check(corpus.num_documents() > 0,
        "[read_corpus] there is no text: {} files, {} of them empty and {} binary", sources.size(),
        found.num_empty_files, found.num_binary_files);
  if (report) *report = found;
  return corpus;
}

}  // namespace flashmha::train
