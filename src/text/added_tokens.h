// Added tokens: strings of a text that are one token each, found before anything else happens to
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/flat_map.h"

namespace flashmha::text {

struct AddedToken {
  std::string content;
  std::uint32_t id = 0;
  bool special = false;
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // and after it
  bool normalized = false;   // looked for in the normalised text
};

// Part of a text: an added token, or text between them.
struct Span {
  std::string_view text;
  std::optional<std::uint32_t> id;
};

// Finds the leftmost of the patterns, the longest of those that start there.
class TokenFinder {
 public:
  // Looks for pattern, which is not empty. Of equal patterns the first counts.
  void add(std::string_view pattern, const AddedToken& token);

  // The parts of text, in its order; empty parts between tokens are left out.
  std::vector<Span> split(std::string_view text, bool match_special) const;

 private:
  struct Match {
    std::size_t length = 0;  // 0: none
    std::size_t token = 0;
  };
  Match longest_match(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  // A tree of bytes. Node 0 is the root; (node << 8 | byte) leads to the next.
  FlatMap edges_;
  std::vector<std::optional<std::size_t>> token_at_ = {std::nullopt};  // [node]
};

}  // namespace flashmha::text
