// tokenizer.json: what is refused and how, invalid UTF-8, folders of models, costs.
#include <gtest/gtest.h>
#include <ctime>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "flashmha/error.h"
#include "flashmha/tokenizer.h"
#include "tests/core/expect_error.h"
#include "tests/io/folder.h"
#include "tests/text/refusals.h"

namespace flashmha::text {

void load_library(const char* name);  // load_library.cpp

namespace {

using nlohmann::json;
using test::expect_error;
using Ids = std::vector<std::int64_t>;

const std::string kTruth = FLASHMHA_TESTS_DIR "/truth/";

TEST(Oniguruma, that_is_missing_or_another_library_is_named) {
  expect_error(ErrorCode::unsupported,
               {"[Tokenizer] tokenizer.json needs the library Oniguruma (Debian: libonig5)",
                "libonig.so.0: cannot open shared object file"},
               [] { load_library("libonig.so.0"); });
  expect_error(ErrorCode::unsupported,
               {"[Tokenizer] the library libm.so.6 has no OnigEncodingUTF8"},
               [] { load_library("libm.so.6"); });
}

json small() {
  return json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 5, "content": "<s>", "single_word": false, "lstrip": false,
                      "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
              "byte_fallback": false, "ignore_merges": false,
              "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4},
              "merges": ["b c", "a b"]}})");
}

Tokenizer load(const json& content) {
  return Tokenizer::from_json(content.dump());
}

TEST(tokenizer_json, merges_by_rank) {
  const Tokenizer tokenizer = load(small());
  EXPECT_EQ(tokenizer.vocab_size(), 6);
  EXPECT_EQ(tokenizer.encode("abc ab"), (Ids{5, 0, 4, 3}));  // a space is no token: nothing
  json pairs = small();
  pairs["model"]["merges"] = json::parse(R"([["b", "c"], ["a", "b"]])");
  EXPECT_EQ(load(pairs).encode("abc ab"), (Ids{5, 0, 4, 3}));
  json swapped = small();
  swapped["model"]["merges"] = json::parse(R"(["a b", "b c"])");
  EXPECT_EQ(load(swapped).encode("abc"), (Ids{5, 3, 2}));
}

TEST(tokenizer_json, refuses_by_field_and_value) {
  constexpr auto kUnsupported = ErrorCode::unsupported;
  constexpr auto kInvalid = ErrorCode::invalid_argument;
  const Refusal refusals[] = {
      {"/truncation", R"({"max_length": 8})", kUnsupported, {"truncation", "max_length"}},
      {"/padding", R"({"strategy": "BatchLongest"})", kUnsupported, {"padding"}},
      {"/version", R"("2.0")", kUnsupported, {"version", "2.0"}},
      {"/something", "1", kUnsupported, {"something"}},
      {"/model/type", R"("Unigram")", kUnsupported, {"model.type", "Unigram"}},
      {"/model/dropout", "0.1", kUnsupported, {"model.dropout", "0.1"}},
      {"/model/byte_fallback", "true", kUnsupported, {"model.byte_fallback", "ByteLevel"}},
      {"/model/continuing_subword_prefix", R"("##")", kUnsupported, {"subword_prefix", "##"}},
      {"/model/end_of_word_suffix", R"("</w>")", kUnsupported, {"end_of_word_suffix", "</w>"}},
      {"/model/unk_token", R"("<unk>")", kInvalid, {"model.unk_token", "<unk>"}},
      {"/model/vocab/a", "3", kInvalid, {"id 3"}},
      {"/model/vocab/a", "-1", kInvalid, {"vocab.a", "-1"}},
      {"/model/vocab/a", "4194304", kInvalid, {"4194304"}},
      {"/model/merges/0", R"("b  c")", kInvalid, {"merges[0]", "b  c"}},
      {"/model/merges/1", R"(["a", "c"])", kInvalid, {"merges[1]", "'ac'"}},
      {"/model/merges/1", "7", kInvalid, {"merges[1]", "7"}},
      {"/model/merges", "null", kInvalid, {"model.merges is missing"}},
      {"/normalizer", R"({"type": "Lowercase"})", kUnsupported, {"normalizer", "Lowercase"}},
      {"/normalizer", R"({"type": "Prepend"})", kInvalid, {"prepend is missing"}},
      {"/normalizer",
       R"({"type": "Replace", "pattern": {"String": ""}, "content": ""})",
       kInvalid,
       {"normalizer", "pattern", "empty"}},
      {"/pre_tokenizer", "null", kUnsupported, {"decoder", "type", "ByteLevel"}},
      {"/pre_tokenizer", R"({"type": "Whitespace"})", kUnsupported, {"Whitespace"}},
      {"/pre_tokenizer/pretokenizers/0/behavior",
       R"("Odd")",
       kUnsupported,
       {"pretokenizers[0]", "behavior", "Odd"}},
      {"/pre_tokenizer/pretokenizers/0/pattern",
       R"({"Regex": "(a"})",
       kInvalid,
       {"pretokenizers[0]", "(a", "no regular expression"}},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"String": ""})", kInvalid, {"pattern"}},
      {"/pre_tokenizer/pretokenizers/0",
       R"({"type": "ByteLevel"})",
       kUnsupported,
       {"pretokenizers[1]", "ByteLevel as the last"}},
      {"/decoder", "null", kUnsupported, {"decoder", "ByteLevel"}},
      {"/decoder", R"({"type": "WordPiece"})", kUnsupported, {"decoder", "WordPiece"}},
      {"/post_processor", R"({"type": "BertProcessing"})", kUnsupported, {"BertProcessing"}},
      {"/post_processor/single/1/Sequence/id", R"("B")", kUnsupported, {"single"}},
      {"/post_processor/special_tokens/<s>/ids/0", "6", kInvalid, {"<s>.ids", "6"}},
      {"/post_processor/special_tokens", "{}", kInvalid, {"<s> is missing"}},
      {"/added_tokens/0/id", "2", kInvalid, {"id 2", "<s>"}},
      {"/added_tokens/0/content", R"("a")", kInvalid, {"added_tokens[0]", "id", "must be 0"}},
      {"/added_tokens/0/odd", "1", kUnsupported, {"added_tokens[0]", "odd"}},
  };
  expect_refusals(small(), refusals);
  expect_error(kInvalid, {"[Tokenizer::from_json]", "not JSON"},
               [] { Tokenizer::from_json(R"({"model": )"); });
}

// (x+x+)+y takes 2^n steps for n letters x.
TEST(tokenizer_json, gives_up_on_a_pattern_that_takes_forever) {
  json content = small();
  content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(x+x+)+y";
  const Tokenizer tokenizer = load(content);
  EXPECT_EQ(tokenizer.encode("ab xxy"), (Ids{5, 3}));
  expect_error(ErrorCode::invalid_argument, {"[Tokenizer::encode]", "(x+x+)+y", "gives up"},
               [&] { tokenizer.encode(std::string(60, 'x')); });
}

// Bytes that are no UTF-8 are tokens of their own, and come back as U+FFFD.
TEST(tokenizer_json, invalid_utf8) {
  for (const char* name : {"gpt2", "llama3", "qwen2"}) {
    const Tokenizer tokenizer = Tokenizer::from_file(kTruth + "tokenizer_" + name + ".json");
    const EncodeOptions plain{.add_special_tokens = false};
    Ids expected = tokenizer.encode("the head", plain);
    expected.push_back(*tokenizer.token_id("\u0122"));  // the letters of bytes 0x80 and 0xFF
    expected.push_back(*tokenizer.token_id("\u00FF"));
    for (const std::int64_t id : tokenizer.encode(" score", plain))
      expected.push_back(id);
    const Ids ids = tokenizer.encode("the head\x80\xFF score", plain);
    EXPECT_EQ(ids, expected) << name;
    EXPECT_EQ(tokenizer.decode(ids), "the head\uFFFD\uFFFD score") << name;
  }
}

TEST(tokenizer_json, every_text_comes_back) {
  constexpr std::uint64_t kSeed = 20261126;
  std::mt19937_64 random(kSeed);
  const Tokenizer gpt2 = Tokenizer::from_file(kTruth + "tokenizer_gpt2.json");
  const Tokenizer bytes = Tokenizer::bytes();
  for (int i = 0; i < 100; ++i) {
    std::string text(random() % 300, ' ');
    for (char& c : text)
      c = static_cast<char>(random() % 3 == 0 ? random() : 'a' + random() % 4);
    const std::string repaired = bytes.decode(bytes.encode(text));
    EXPECT_EQ(gpt2.decode(gpt2.encode(text)), repaired) << "seed " << kSeed;
    EXPECT_EQ(gpt2.decode(gpt2.encode(repaired)), repaired) << "seed " << kSeed;
  }
}

TEST(tokenizer_json, many_threads_share_one) {
  const Tokenizer tokenizer = Tokenizer::from_file(kTruth + "tokenizer_qwen2.json");
  std::string text;
  for (int i = 0; i < 200; ++i)
    text += "the heads of " + std::to_string(i) + " 블록으로 e\u0301\n";
  const Ids expected = tokenizer.encode(text);
  std::vector<Ids> found(4);
  std::vector<std::thread> threads;
  for (Ids& ids : found)
    threads.emplace_back([&] { ids = tokenizer.encode(text); });
  for (std::thread& thread : threads)
    thread.join();
  for (const Ids& ids : found)
    EXPECT_EQ(ids, expected);
}

class for_model : public testing::Test {
 protected:
  test::Folder folder_;
};

TEST_F(for_model, bytes_without_a_tokenizer) {
  EXPECT_EQ(Tokenizer::for_model(folder_.path()).vocab_size(), 257);
  folder_.write("tokenizer.model", "x");
  expect_error(ErrorCode::unsupported, {folder_.path(), "tokenizer.model"},
               [&] { Tokenizer::for_model(folder_.path()); });
}

TEST_F(for_model, ends_of_a_sequence) {
  folder_.write("tokenizer.json", small().dump());
  EXPECT_FALSE(Tokenizer::for_model(folder_.path()).eos_token_id());
  folder_.write("tokenizer_config.json", R"({"bos_token": null, "eos_token": {"content": "<s>"}})");
  EXPECT_EQ(Tokenizer::for_model(folder_.path()).eos_token_id(), 5);
  EXPECT_FALSE(Tokenizer::for_model(folder_.path()).bos_token_id());
  folder_.write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  EXPECT_EQ(Tokenizer::for_model(folder_.path()).bos_token_id(), 5);
  folder_.write("tokenizer_config.json", R"({"eos_token": "</s>"})");
  expect_error(ErrorCode::invalid_argument, {"tokenizer_config.json", "eos_token", "</s>"},
               [&] { Tokenizer::for_model(folder_.path()); });
}

TEST_F(for_model, no_such_file) {
  expect_error(ErrorCode::io, {"absent.json"},
               [&] { Tokenizer::from_file(folder_ / "absent.json"); });
}

double cpu_seconds(const std::function<void()>& work) {
  const std::clock_t begin = std::clock();
  work();
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

// A vocabulary of the 256 bytes and all words of a number of letters.
std::string vocabulary_of(int num_words) {
  json content = json::parse(std::ifstream(kTruth + "tokenizer_gpt2.json"));
  json& vocab = content["model"]["vocab"];
  json& merges = content["model"]["merges"];
  auto next = static_cast<std::int64_t>(vocab.size()) + 1;  // <|endoftext|> has the one before
  std::vector<std::string> words = {"e"};
  for (std::size_t i = 0; static_cast<int>(words.size()) <= num_words; ++i) {
    for (char letter = 'k'; letter <= 'z'; ++letter) {
      words.push_back(words[i] + letter);
      if (vocab.contains(words.back())) continue;
      vocab[words.back()] = next++;
      merges.push_back(words[i] + " " + letter);
    }
  }
  return content.dump();
}

// Costs grow with the size and not with its square: eight times the size takes about eight times as
// long; a square would be 64 times.
TEST(tokenizer_costs, grow_with_the_size) {
  const std::string few = vocabulary_of(16'000);
  const std::string many = vocabulary_of(128'000);
  Tokenizer tokenizer = Tokenizer::bytes();
  const double load_few = cpu_seconds([&] { tokenizer = Tokenizer::from_json(few); });
  const double load_many = cpu_seconds([&] { tokenizer = Tokenizer::from_json(many); });
  EXPECT_LT(load_many, 24 * load_few + 0.1);
  EXPECT_GT(tokenizer.vocab_size(), 128'000);

  // One word without an end is the worst case of merging.
  constexpr std::uint64_t kSeed = 20261127;
  std::mt19937_64 random(kSeed);
  std::string word(400'000, 'e');
  for (char& c : word)
    c = static_cast<char>('a' + random() % 26);
  const std::string_view start = std::string_view(word).substr(0, word.size() / 8);
  const double encode_few = cpu_seconds([&] { tokenizer.encode(start); });
  const double encode_many = cpu_seconds([&] { tokenizer.encode(word); });
  EXPECT_LT(encode_many, 24 * encode_few + 0.1);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(word)), word);
}

}  // namespace
}  // namespace flashmha::text
