// The tokenizer of bytes, and decoding of a stream.
#include "flashmha/tokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "flashmha/error.h"
#include "tests/core/expect_error.h"

namespace flashmha::text {
namespace {

using test::expect_error;
using Ids = std::vector<std::int64_t>;

std::string random_bytes(std::mt19937_64& random, std::size_t size) {
  std::string text(size, '\0');
  // Mostly bytes that belong to longer characters, so that valid and broken ones both come up.
  constexpr std::string_view kOften = "a\xC3\xA9\xE2\x82\xAC\xED\xA0\xF0\x9F\x98\x80\xF4\x90\xBF";
  for (char& c : text) {
    c = random() % 4 == 0 ? static_cast<char>(random()) : kOften[random() % kOften.size()];
  }
  return text;
}

TEST(bytes, are_their_ids) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_EQ(tokenizer.vocab_size(), 257);
  EXPECT_EQ(tokenizer.eos_token_id(), 256);
  EXPECT_FALSE(tokenizer.bos_token_id());
  EXPECT_EQ(tokenizer.token_id("<|endoftext|>"), 256);
  EXPECT_EQ(tokenizer.token_id("a"), 97);
  EXPECT_FALSE(tokenizer.token_id("ab"));
  EXPECT_EQ(tokenizer.encode(""), Ids{});
  EXPECT_EQ(tokenizer.encode(std::string_view("\0\xFFz", 3)), (Ids{0, 255, 'z'}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("한국어 \U0001F600")), "한국어 \U0001F600");
}

TEST(bytes, special_token_in_the_text) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_EQ(tokenizer.encode("a<|endoftext|>b"), (Ids{'a', 256, 'b'}));
  EXPECT_EQ(tokenizer.encode("<|endoftext|><|endoftext|>"), (Ids{256, 256}));
  EXPECT_EQ(tokenizer.encode("<|endoftext|").size(), 12U);
  EXPECT_EQ(tokenizer.encode("<|endoftext|>", {.match_special_tokens = false}).size(), 13U);
  EXPECT_EQ(tokenizer.decode(Ids{'a', 256, 'b'}), "ab");
  EXPECT_EQ(tokenizer.decode(Ids{'a', 256, 'b'}, false), "a<|endoftext|>b");
}

TEST(bytes, every_string_comes_back) {
  constexpr std::uint64_t kSeed = 20261124;
  std::mt19937_64 random(kSeed);
  const Tokenizer tokenizer = Tokenizer::bytes();
  for (int i = 0; i < 200; ++i) {
    const std::string text = random_bytes(random, random() % 100);
    const Ids ids = tokenizer.encode(text);
    ASSERT_EQ(ids.size(), text.size()) << "seed " << kSeed;
    for (std::size_t j = 0; j < ids.size(); ++j) {
      ASSERT_EQ(static_cast<char>(ids[j]), text[j]) << "seed " << kSeed;
    }
  }
}

// As Python's bytes.decode(errors="replace") does.
TEST(decode, replaces_what_is_no_character) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  const auto decoded = [&](std::string_view bytes) {
    return tokenizer.decode(tokenizer.encode(bytes));
  };
  EXPECT_EQ(decoded("a\xE2\x82z"), "a\uFFFDz");                        // one for a beginning
  EXPECT_EQ(decoded("\x80\x80"), "\uFFFD\uFFFD");                      // no beginning
  EXPECT_EQ(decoded("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");            // a surrogate
  EXPECT_EQ(decoded("\xC0\xAF"), "\uFFFD\uFFFD");                      // overlong
  EXPECT_EQ(decoded("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");  // above U+10FFFF
  EXPECT_EQ(decoded("\xF0\x9F\x98"), "\uFFFD");                        // cut at the end
  EXPECT_EQ(decoded("\xF0\x9F\xF0\x9F\x98\x80"), "\uFFFD\U0001F600");
}

TEST(decode, ids_without_a_token) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_EQ(tokenizer.decode(Ids{'a', 257, std::int64_t{1} << 40U, 'b'}), "ab");
  expect_error(ErrorCode::invalid_argument, {"[Tokenizer::decode]", "-100"}, [&] {
    tokenizer.decode(Ids{'a', -100});
  });
}

TEST(stream, gives_what_decode_gives) {
  constexpr std::uint64_t kSeed = 20261125;
  std::mt19937_64 random(kSeed);
  const Tokenizer tokenizer = Tokenizer::bytes();
  StreamDecoder stream(tokenizer, false);
  for (int i = 0; i < 500; ++i) {
    Ids ids = tokenizer.encode(random_bytes(random, random() % 40));
    if (random() % 2 == 0) ids.insert(ids.begin() + static_cast<long>(ids.size() / 2), 256);
    std::string joined;
    for (const std::int64_t id : ids) {
      const std::string part = stream.push(id);
      // Valid by itself: encoding and decoding it changes nothing.
      ASSERT_EQ(tokenizer.decode(tokenizer.encode(part), false), part) << "seed " << kSeed;
      joined += part;
    }
    joined += stream.finish();
    ASSERT_EQ(joined, tokenizer.decode(ids, false)) << "seed " << kSeed;
  }
}

TEST(stream, holds_a_character_back) {
  StreamDecoder stream(Tokenizer::bytes());
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(0x98), "");
  EXPECT_EQ(stream.push(0x80), "\U0001F600");
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

}  // namespace
}  // namespace flashmha::text
