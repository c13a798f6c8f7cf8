// Tokenizers against the `tokenizers` library: see make_tokenizers.py.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flashmha/tokenizer.h"

namespace flashmha::text {
namespace {

using Ids = std::vector<std::int64_t>;
using nlohmann::json;

const std::string kFolder = FLASHMHA_TESTS_DIR "/truth/";

// The file with the answers of a tokenizer.
const json& truth_of(const std::string& name) {
  static const json kByteLevel = json::parse(std::ifstream(kFolder + "tokenizers.json"));
  static const json kSentencePiece = json::parse(std::ifstream(kFolder + "sentencepiece.json"));
  return kByteLevel.at("answers").contains(name) ? kByteLevel : kSentencePiece;
}

// An answer that is null stands for `otherwise`.
template <class T>
T answer(const json& value, const T& otherwise) {
  return value.is_null() ? otherwise : value.get<T>();
}

class tokenizer : public testing::TestWithParam<const char*> {
 protected:
  Tokenizer tokenizer_ = Tokenizer::from_file(kFolder + "tokenizer_" + GetParam() + ".json");
};

TEST_P(tokenizer, encodes_and_decodes_as_the_real_library) {
  const json& texts = truth_of(GetParam()).at("texts");
  const json& answers = truth_of(GetParam()).at("answers").at(GetParam());
  const auto num_before = static_cast<std::ptrdiff_t>(tokenizer_.encode("").size());
  ASSERT_GT(texts.size(), 100U);
  ASSERT_EQ(answers.size(), texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto text = texts[i].get<std::string>();
    SCOPED_TRACE("text " + std::to_string(i) + ": " + texts[i].dump(-1, ' ', true));
    const Ids ids = tokenizer_.encode(text);
    EXPECT_EQ(ids, answers[i][0].get<Ids>());
    EXPECT_EQ(tokenizer_.encode(text, {.add_special_tokens = false, .match_special_tokens = false}),
              answer(answers[i][1], Ids(ids.begin() + num_before, ids.end())));
    EXPECT_EQ(tokenizer_.decode(ids), answer(answers[i][2], text));
    EXPECT_EQ(tokenizer_.decode(ids, false), answer(answers[i][3], text));
  }
}

TEST_P(tokenizer, decodes_any_ids) {
  for (const json& row : truth_of(GetParam()).at("decoded").at(GetParam())) {
    const Ids ids = row[0].get<Ids>();
    const auto expected = row[1].get<std::string>();
    EXPECT_EQ(tokenizer_.decode(ids), expected) << row[0];
    StreamDecoder stream(tokenizer_);
    std::string joined;
    for (const std::int64_t id : ids)
      joined += stream.push(id);
    EXPECT_EQ(joined + stream.finish(), expected) << row[0];
  }
}

INSTANTIATE_TEST_SUITE_P(truth, tokenizer,
                         testing::Values("gpt2", "llama3", "qwen2", "mixed", "splits", "prefix",
                                         "llama2", "mistral3", "gemma2", "legacy", "marks",
                                         "sparse"),
                         [](const auto& one) { return std::string(one.param); });

}  // namespace
}  // namespace flashmha::text
