// tokenizer.json of vocabularies by SentencePiece: refusals, bytes, streams, costs.
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "flashmha/error.h"
#include "flashmha/tokenizer.h"
#include "tests/text/refusals.h"

namespace flashmha::text {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int64_t>;

constexpr EncodeOptions kPlain{.add_special_tokens = false};
const std::vector<std::string> kAll = {"llama2", "mistral3", "gemma2", "legacy", "marks", "sparse"};

json read(const std::string& name) {
  return json::parse(std::ifstream(FLASHMHA_TESTS_DIR "/truth/tokenizer_" + name + ".json"));
}

Tokenizer load(const json& content) {
  return Tokenizer::from_json(content.dump());
}

TEST(sentencepiece, refuses_by_field_and_value) {
  constexpr auto kUnsupported = ErrorCode::unsupported;
  constexpr auto kInvalid = ErrorCode::invalid_argument;
  const Refusal refusals[] = {
      {"/model/type", R"("Unigram")", kUnsupported, {"model.type", "Unigram"}},
      {"/normalizer/normalizers/0", R"({"type": "Precompiled"})", kUnsupported, {"Precompiled"}},
      {"/normalizer/normalizers/1/pattern", R"({"Regex": "(a"})", kInvalid, {"(a", "no regular"}},
      {"/normalizer/normalizers/1/content",
       '"' + std::string(300, 'a') + '"',
       kInvalid,
       {"normalizers[1]", "content", "1024 times"}},
      {"/normalizer/normalizers/0/prepend",
       '"' + std::string(2000, 'a') + '"',
       kInvalid,
       {"normalizers[0]", "prepend", "1024 times"}},
      {"/decoder/decoders/0/content",
       '"' + std::string(1024, 'a') + '"',
       kInvalid,
       {"decoders[0]", "content", "1024 times"}},
      {"/pre_tokenizer", R"({"type": "ByteLevel"})", kUnsupported, {"decoder", "ByteLevel"}},
      {"/pre_tokenizer",
       R"({"type": "Metaspace", "replacement": "ab"})",
       kInvalid,
       {"pre_tokenizer", "replacement", "one character"}},
      {"/pre_tokenizer",
       R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "odd"})",
       kUnsupported,
       {"prepend_scheme", "odd"}},
      {"/pre_tokenizer",
       R"({"type": "Metaspace", "replacement": "_", "add_prefix_space": false})",
       kInvalid,
       {"add_prefix_space"}},
      {"/decoder", "null", kUnsupported, {"decoder", "null"}},
      {"/decoder", R"({"type": "ByteLevel"})", kUnsupported, {"decoder", "ByteLevel"}},
      {"/decoder/decoders/0", R"({"type": "CTC"})", kUnsupported, {"decoders[0]", "CTC"}},
      {"/decoder/decoders/0", R"({"type": "Fuse"})", kUnsupported, {"decoders[1]", "ByteFallback"}},
      {"/decoder/decoders/3/stop", "1", kUnsupported, {"decoders[3]", "stop", "1"}},
      {"/decoder/decoders/3/start", "-1", kInvalid, {"decoders[3]", "start", "-1"}},
      {"/decoder/decoders/3/content", R"("ab")", kInvalid, {"content", "one character"}},
      {"/decoder/decoders/2/odd", "1", kUnsupported, {"decoders[2]", "odd"}},
  };
  expect_refusals(read("llama2"), refusals);
}

// The text that ids stand for, byte by byte, by their names.
std::string bytes_of(const Ids& ids, const json& content) {
  std::map<std::int64_t, std::string> names;
  for (const auto& [name, id] : content["model"]["vocab"].items())
    names[id.get<std::int64_t>()] = name;
  std::string bytes;
  for (const std::int64_t id : ids) {
    const std::string& name = names.at(id);
    if (name.size() == 6 && name.starts_with("<0x")) {
      bytes += static_cast<char>(std::stoi(name.substr(3, 2), nullptr, 16));
    } else {
      bytes += name;
    }
  }
  constexpr std::string_view kMark = "\u2581";
  for (auto at = bytes.find(kMark); at != std::string::npos; at = bytes.find(kMark, at))
    bytes.replace(at, kMark.size(), " ");
  return bytes;
}

// Nothing is lost, whatever the bytes are; a text that does not start with bytes that are no UTF-8
// has one more space there.
TEST(sentencepiece, every_byte_becomes_a_token) {
  constexpr std::uint64_t kSeed = 20261128;
  std::mt19937_64 random(kSeed);
  const std::vector<std::string> parts = {"the ",     " head",  " ",           "\xFF",
                                          "\xE2\x82", "\u20AC", "\xF0\x9F",    "\U0001F600",
                                          "e",        "\n",     "\xED\xA0\x80"};
  for (const std::string name : {"llama2", "mistral3", "gemma2"}) {
    const json content = read(name);
    const Tokenizer tokenizer = load(content);
    for (int i = 0; i < 200; ++i) {
      std::string text = "x";
      for (std::uint64_t n = random() % 20; n > 0; --n)
        text += parts[random() % parts.size()];
      const std::string prefix = name == "gemma2" ? "" : " ";
      EXPECT_EQ(bytes_of(tokenizer.encode(text, kPlain), content), prefix + text)
          << name << ", seed " << kSeed;
    }
    EXPECT_EQ(bytes_of(tokenizer.encode("\xFFthe", kPlain), content), "\xFFthe") << name;
  }
}

// Also where bytes are no character, and at the start of a text, where a space goes.
TEST(sentencepiece, streams_give_what_decode_gives) {
  constexpr std::uint64_t kSeed = 20261129;
  std::mt19937_64 random(kSeed);
  const Tokenizer bytes = Tokenizer::bytes();
  for (const std::string& name : kAll) {
    const Tokenizer tokenizer = load(read(name));
    StreamDecoder stream(tokenizer);
    for (int i = 0; i < 300; ++i) {
      Ids ids(random() % 30);
      const std::uint64_t limit =
          i % 2 == 0 ? 262 : static_cast<std::uint64_t>(tokenizer.vocab_size());
      for (std::int64_t& id : ids)
        id = static_cast<std::int64_t>(random() % limit);
      std::string joined;
      for (const std::int64_t id : ids) {
        const std::string part = stream.push(id);
        ASSERT_EQ(bytes.decode(bytes.encode(part), false), part) << name << ", seed " << kSeed;
        joined += part;
      }
      joined += stream.finish();
      ASSERT_EQ(joined, tokenizer.decode(ids)) << name << ", seed " << kSeed;
    }
  }
}

TEST(sentencepiece, a_stream_waits_for_the_bytes_of_a_character) {
  const Tokenizer tokenizer = load(read("llama2"));
  const auto id = [&](const char* token) { return *tokenizer.token_id(token); };
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push(id("<s>")), "");
  EXPECT_EQ(stream.push(id("\u2581the")), "the");
  EXPECT_EQ(stream.push(id("<0xF0>")), "");
  EXPECT_EQ(stream.push(id("<0x9F>")), "");
  EXPECT_EQ(stream.push(id("<0x98>")), "");
  EXPECT_EQ(stream.push(id("<0x80>")), "");  // a byte that breaks it may come
  EXPECT_EQ(stream.push(id("\u2581the")), "\U0001F600 the");
  EXPECT_EQ(stream.push(id("<0xF0>")), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.push(id("\u2581the")), "the");  // a new text
}

// A prompt's last bytes are its own, and what follows it is not the start of a text.
TEST(sentencepiece, a_stream_goes_on_from_ids_that_it_skips) {
  const Tokenizer tokenizer = load(read("llama2"));
  const std::int64_t the = *tokenizer.token_id("\u2581the");
  for (const std::string prompt : {"the head", "a\n\n", "\U0001F600", "\xE2\x82"}) {
    StreamDecoder stream(tokenizer);
    stream.skip(tokenizer.encode(prompt));
    EXPECT_EQ(stream.push(the), " the") << prompt;
    stream.finish();
    EXPECT_EQ(stream.push(the), "the") << prompt;
  }
}

// A merge that leaves its word, of a character that no text here has: words are no longer encoded
// one by one, with the same result.
TEST(sentencepiece, words_one_by_one_or_all_at_once) {
  constexpr std::uint64_t kSeed = 20261130;
  std::mt19937_64 random(kSeed);
  for (const std::string name : {"llama2", "gemma2"}) {
    json content = read(name);
    const Tokenizer one_by_one = load(content);
    json& vocab = content["model"]["vocab"];
    const std::int64_t next = one_by_one.vocab_size();
    vocab["\uE000"] = next;
    vocab["\uE000\u2581"] = next + 1;
    content["model"]["merges"].push_back({"\uE000", "\u2581"});
    const Tokenizer at_once = load(content);
    const std::vector<std::string> parts = {"the", " ", "  ", "head", "s", "\u2581", "\U0001F600"};
    for (int i = 0; i < 200; ++i) {
      std::string text;
      for (std::uint64_t n = random() % 60; n > 0; --n)
        text += parts[random() % parts.size()];
      ASSERT_EQ(one_by_one.encode(text), at_once.encode(text)) << name << ", seed " << kSeed;
    }
  }
}

double encode_seconds(const Tokenizer& tokenizer, std::string_view text) {
  const std::clock_t begin = std::clock();
  tokenizer.encode(text);
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

// Eight times the text takes about eight times as long; a square would be 64 times.
TEST(sentencepiece, a_text_without_cuts_costs_n_log_n) {
  constexpr std::uint64_t kSeed = 20261201;
  std::mt19937_64 random(kSeed);
  const Tokenizer tokenizer = load(read("marks"));  // merges go on into the next word
  std::string text(400'000, ' ');
  for (char& c : text)
    c = "the head is computed"[random() % 20];
  const double few = encode_seconds(tokenizer, std::string_view(text).substr(0, text.size() / 8));
  EXPECT_LT(encode_seconds(tokenizer, text), 24 * few + 0.1);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("z" + text)), "z" + text);
}

}  // namespace
}  // namespace flashmha::text
