// Cuts a text into the pieces that are encoded one by one.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <variant>
#include <vector>

#include "text/pattern.h"
#include "text/piece.h"

namespace flashmha::text {

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

// SentencePiece's way with spaces: each becomes a mark, which also stands before a text, and which
// words begin with.
struct Metaspace {
  enum class Prepend : std::uint8_t { never, first, always };

  std::string mark;                   // one character
  Prepend prepend = Prepend::always;  // before the first piece of a text, or all, without a mark
  bool split = true;                  // a word is a piece
};

class PreTokenizer {
 public:
  using Step = std::variant<Split, PrefixSpace, Metaspace>;

  void add(Step step) { steps_.push_back(std::move(step)); }

  // Pieces of a text, in its order, none empty. They refer to text, or to strings in `made`.
  std::vector<Piece> split(const Piece& text, std::deque<std::string>& made) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace flashmha::text
