// Cuts a text into the pieces that are encoded one by one.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/regex.h"

namespace flashmha::text {

// What a cut is made at.
struct Digits {
  bool individual = false;  // each digit is a match, or each run of digits
};
using Pattern = std::variant<Regex, std::string, Digits>;

// What becomes of a match: dropped, a piece of its own, the end or the beginning of a piece with
// its neighbour, or one piece with the matches that touch it.
enum class Behavior : std::uint8_t {
  removed,
  isolated,
  merged_with_previous,
  merged_with_next,
  contiguous
};

struct Split {
  Pattern pattern;
  Behavior behavior = Behavior::isolated;
  bool invert = false;  // the text between matches is what matches
};

// A space before every piece that does not begin with one.
struct PrefixSpace {};

class PreTokenizer {
 public:
  using Step = std::variant<Split, PrefixSpace>;

  void add(Step step) { steps_.push_back(std::move(step)); }

  // Pieces of a text, in its order, none empty. They refer to text, or to strings in `made`.
  std::vector<std::string_view> split(std::string_view text, std::deque<std::string>& made) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace flashmha::text
