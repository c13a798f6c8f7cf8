#include "io/json.h"

#include "tests/core/expect_error.h"
#include "tests/io/folder.h"

namespace flashmha::io {
namespace {

using test::expect_error;

void expect_refused(std::string_view text, std::initializer_list<std::string> pieces,
                    const JsonLimits& limits = {}) {
  expect_error(ErrorCode::invalid_argument, pieces,
               [&] { parse_json(text, "[f] x.json", limits); });
}

TEST(Json, RefusesWhatIsNotJson) {
  for (const char* text : {"", "{", "{]", "{\"a\":1,}", "[1 2]", "NaN", "{'a':1}", "{\"a\":01}",
                           "\"\\ud800\"", "// no\n{}", "{} {}"}) {
    expect_refused(text, {"[f] x.json: not JSON"});
  }
  expect_refused(std::string_view("\"a\0b\"", 5), {"not JSON"});
}

TEST(Json, RefusesInvalidUtf8) {
  for (const char* text : {"\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xe2\x82\""}) {
    expect_refused(text, {"not JSON", "UTF-8"});
  }
}

TEST(Json, RefusesAKeyTwice) {
  expect_refused(R"({"a": {"b": 1, "c": 2, "b": 3}})", {"the key 'b' twice"});
  EXPECT_NO_THROW(parse_json(R"([{"b": 1}, {"b": {"b": 3}}])", ""));
}

TEST(Json, HasLimits) {
  const std::string deep = std::string(100'000, '[');
  expect_refused(deep, {"nested more than 32 levels"});
  expect_refused(R"({"a":{"a":[[]]}})", {"nested more than 3 levels"}, {.max_depth = 3});
  EXPECT_NO_THROW(parse_json(R"({"a":{"a":[]}})", "", {.max_depth = 3}));
  expect_refused("[1,2,3,4]", {"more than 4 values"}, {.max_values = 4});
  EXPECT_NO_THROW(parse_json("[1,2,3]", "", {.max_values = 4}));
  expect_refused("[1,2,3]", {"at most 6 bytes"}, {.max_bytes = 6});
}

TEST(Json, QuotesWithoutControlCharacters) {
  EXPECT_EQ(quote("a\x1b[31m\n"), "'a\\x1b[31m\\x0a'");
  EXPECT_LT(quote(std::string(100'000, 'x')).size(), 200u);
}

TEST(JsonObject, GivesTypedFields) {
  const Json json = parse_json(
      R"({"i": -3, "d": 2.5, "t": true, "s": "x", "n": null, "a": [1], "o": {"p": {"q": "r"}}})",
      "");
  const JsonObject object(json, "[f] x.json");
  EXPECT_EQ(object.integer("i"), -3);
  EXPECT_EQ(object.number("d"), 2.5);
  EXPECT_EQ(object.number("i"), -3.0);
  EXPECT_TRUE(object.boolean("t"));
  EXPECT_EQ(object.text("s"), "x");
  EXPECT_EQ(object.array("a").size(), 1u);
  EXPECT_EQ(object.object("o").object("p").text("q"), "r");
  EXPECT_FALSE(object.has("n"));
  EXPECT_EQ(object.integer("n", 7), 7);
  EXPECT_EQ(object.number("none", 1.5), 1.5);
  EXPECT_FALSE(object.boolean("none", false));
  EXPECT_EQ(object.text("none", "y"), "y");
}

TEST(JsonObject, NamesTheFieldThatIsWrong) {
  const Json json = parse_json(R"({"o": {"p": {"q": "text"}}, "big": 18446744073709551615,
                                   "d": 1.5, "n": null})",
                               "");
  const JsonObject object(json, "[f] x.json");
  const auto refused = [&](std::initializer_list<std::string> pieces, auto&& function) {
    expect_error(ErrorCode::invalid_argument, pieces, function);
  };
  refused({"[f] x.json: o.p.q must be an integer", "\"text\""},
          [&] { object.object("o").object("p").integer("q"); });
  refused({"o.p.z is missing"}, [&] { object.object("o").object("p").text("z"); });
  refused({"n is missing"}, [&] { object.number("n"); });
  refused({"big must be an integer of 64 bits"}, [&] { object.integer("big"); });
  refused({"d must be an integer"}, [&] { object.integer("d", 3); });
  refused({"d must be true or false"}, [&] { object.boolean("d"); });
  refused({"o must be a number"}, [&] { object.number("o"); });
  refused({"o must be an array"}, [&] { object.array("o"); });
  refused({"d must be an object"}, [&] { object.object("d"); });
  refused({"must be a JSON object; got array"}, [&] { JsonObject(Json::array(), "[f] y"); });
}

}  // namespace
}  // namespace flashmha::io
