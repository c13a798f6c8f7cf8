// Files and folders as documents.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "flashmha/dataset.h"
#include "flashmha/tokenizer.h"
#include "tests/core/expect_error.h"
#include "tests/io/folder.h"

namespace flashmha {
namespace {

namespace fs = std::filesystem;

using namespace test;
using text::Tokenizer;
using train::Corpus;

class ReadCorpus : public testing::Test {
 protected:
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories(fs::path(folder_ / name).parent_path());
    folder_.write(name, text);
  }

  // The documents' texts; checks that each ends with the end token, and has it once.
  std::vector<std::string> read(const std::vector<std::string>& names,
                                const train::CorpusOptions& options = {}) {
    std::vector<std::string> paths;
    paths.reserve(names.size());
    for (const std::string& name : names)
      paths.push_back(folder_ / name);
    const Tokenizer tokenizer = Tokenizer::bytes();
    const Corpus corpus = train::read_corpus(paths, tokenizer, options, &report_);
    std::vector<std::string> texts;
    for (std::int64_t index = 0; index < corpus.num_documents(); ++index) {
      const std::span<const std::int32_t> tokens = corpus.document(index);
      EXPECT_EQ(tokens.back(), *tokenizer.eos_token_id());
      std::string text;
      for (const std::int32_t token : tokens.first(tokens.size() - 1))
        text += static_cast<char>(token);
      texts.push_back(text);
    }
    return texts;
  }

  using Texts = std::vector<std::string>;

  Folder folder_;
  train::CorpusReport report_;
};

TEST_F(ReadCorpus, takes_folders_in_the_order_of_paths) {
  write("b.txt", "bee");
  write("a/z.txt", "zed");
  write("a/b/c.md", "sea");
  write("a/.hidden", "no");
  write(".git/config", "no");
  write("a/empty", "");
  write("a/binary", std::string("x\0y", 3));
  EXPECT_EQ(read({""}), (Texts{"sea", "zed", "bee"}));
  EXPECT_EQ(report_.num_files, 3);
  EXPECT_EQ(report_.num_bytes, 9);
  EXPECT_EQ(report_.num_empty_files, 1);
  EXPECT_EQ(report_.num_binary_files, 1);
  EXPECT_EQ(read({"b.txt", "a"}), (Texts{"bee", "sea", "zed"}));
}

TEST_F(ReadCorpus, counts_a_file_once) {
  write("v2", "same");
  fs::create_symlink("v2", folder_ / "latest");
  fs::create_symlink("absent", folder_ / "dangling");
  EXPECT_EQ(read({"", "v2"}), (Texts{"same"}));
}

TEST_F(ReadCorpus, cuts_at_separators) {
  write("x", "one\n\ntwo\n\n\n\nthree");
  EXPECT_EQ(read({"x"}, {.document_separator = "\n\n"}), (Texts{"one", "two", "three"}));
  EXPECT_EQ(read({"x"}), (Texts{"one\n\ntwo\n\n\n\nthree"}));
}

TEST_F(ReadCorpus, takes_the_text_of_json_lines) {
  write("x.jsonl",
        "{\"text\": \"a\\nb\", \"id\": 1}\n\n{\"text\": \"\\ud55c\"}\r\n{\"text\": \"\"}");
  EXPECT_EQ(read({"x.jsonl"}, {.document_separator = "a"}), (Texts{"a\nb", "\xed\x95\x9c"}));
  write("y.jsonl", "{\"text\": 5}");
  expect_error(ErrorCode::invalid_argument, {"[read_corpus]", "y.jsonl' line 1", "text"},
               [&] { read({"y.jsonl"}); });
}

TEST_F(ReadCorpus, keeps_bytes_that_are_no_utf8) {
  write("x", "\xff\xfe ok \xc3");
  EXPECT_EQ(read({"x"}), (Texts{"\xff\xfe ok \xc3"}));
}

TEST_F(ReadCorpus, says_what_cannot_be_read) {
  expect_error(ErrorCode::io, {"[read_corpus] cannot read", "absent", "No such file"},
               [&] { read({"absent"}); });
  write("binary", std::string("xy\0", 3));
  expect_error(ErrorCode::invalid_argument, {"is no text: byte 2 is NUL"},
               [&] { read({"binary"}); });
  write("folder/empty", "");
  expect_error(ErrorCode::invalid_argument, {"there is no text: 1 files, 1 of them empty"},
               [&] { read({"folder"}); });
}

}  // namespace
}  // namespace flashmha
