// What is looked for in a text: by a cut (pre_tokenizer.h) and by a replacement.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/regex.h"

namespace flashmha::text {

struct Digits {
  bool individual = false;  // each digit is a match, or each run of digits
};
using Pattern = std::variant<Regex, std::string, Digits>;

// All matches in valid UTF-8, from left to right, not overlapping.
std::vector<Range> find_all(const Pattern& pattern, std::string_view text);

// Every match becomes the content.
struct Replace {
  Pattern pattern;
  std::string content;

  std::string apply(std::string_view text) const;
};

}  // namespace flashmha::text
