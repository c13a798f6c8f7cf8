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

const json& truth() {
  static const json kTruth = json::parse(std::ifstream(kFolder + "tokenizers.json"));
  return kTruth;
}

class tokenizer : public testing::TestWithParam<const char*> {
 protected:
  Tokenizer tokenizer_ = Tokenizer::from_file(kFolder + "tokenizer_" + GetParam() + ".json");
};

TEST_P(tokenizer, encodes_and_decodes_as_the_real_library) {
  const json& texts = truth().at("texts");
  const json& answers = truth().at("answers").at(GetParam());
  ASSERT_GT(texts.size(), 100U);
  ASSERT_EQ(answers.size(), texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto text = texts[i].get<std::string>();
    SCOPED_TRACE("text " + std::to_string(i) + ": " + texts[i].dump(-1, ' ', true));
    const Ids ids = tokenizer_.encode(text);
    EXPECT_EQ(ids, answers[i][0].get<Ids>());
    EXPECT_EQ(tokenizer_.encode(text, {.add_special_tokens = false, .match_special_tokens = false}),
              answers[i][1].get<Ids>());
    EXPECT_EQ(tokenizer_.decode(ids), answers[i][2].get<std::string>());
    EXPECT_EQ(tokenizer_.decode(ids, false), answers[i][3].get<std::string>());
  }
}

TEST_P(tokenizer, decodes_any_ids) {
  for (const json& row : truth().at("decoded").at(GetParam())) {
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
                         testing::Values("gpt2", "llama3", "qwen2", "mixed", "splits", "prefix"),
                         [](const auto& one) { return std::string(one.param); });

}  // namespace
}  // namespace flashmha::text
