#include "text/added_tokens.h"

#include <algorithm>

#include "text/unicode.h"
#include "text/utf8.h"

namespace flashmha::text {
namespace {

std::size_t leading_space(std::string_view text) {
  std::size_t length = 0;
  while (length < text.size()) {
    const Utf8Char c = first_char(text.substr(length));
    if (!c.valid || !is_white_space(c.code)) break;
    length += c.length;
  }
  return length;
}

// The last character of a text that is not empty.
Utf8Char last_char(std::string_view text) {
  for (std::size_t length = 1; length <= std::min<std::size_t>(4, text.size()); ++length) {
    const Utf8Char c = first_char(text.substr(text.size() - length));
    if (c.valid && c.length == length) return c;
  }
  return {.length = 1};
}

std::size_t trailing_space(std::string_view text) {
  std::size_t length = 0;
  while (length < text.size()) {
    const Utf8Char c = last_char(text.substr(0, text.size() - length));
    if (!c.valid || !is_white_space(c.code)) break;
    length += c.length;
  }
  return length;
}

bool touches_word(std::string_view before, std::string_view after) {
  const auto is_word_char = [](const Utf8Char& c) { return c.valid && is_word(c.code); };
  return (!before.empty() && is_word_char(last_char(before))) ||
         (!after.empty() && is_word_char(first_char(after)));
}

}  // namespace

void TokenFinder::add(std::string_view pattern, const AddedToken& token) {
  std::uint64_t node = 0;
  for (const char c : pattern) {
    const std::uint64_t edge = node << 8U | static_cast<unsigned char>(c);
    std::uint64_t next = edges_.find(edge);
    if (next == FlatMap::kNone) {
      next = token_at_.size();
      token_at_.emplace_back();
      edges_.set(edge, next);
    }
    node = next;
  }
  if (token_at_[node]) return;
  token_at_[node] = tokens_.size();
  tokens_.push_back(token);
}

TokenFinder::Match TokenFinder::longest_match(std::string_view text) const {
  Match longest;
  std::uint64_t node = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    node = edges_.find(node << 8U | static_cast<unsigned char>(text[i]));
    if (node == FlatMap::kNone) break;
    if (token_at_[node]) longest = {i + 1, *token_at_[node]};
  }
  return longest;
}

std::vector<Span> TokenFinder::split(std::string_view text, bool match_special) const {
  std::vector<Span> spans;
  std::size_t done = 0;  // what lies before belongs to a span
  const auto add_text = [&](std::size_t end) {
    if (done < end) spans.push_back({text.substr(done, end - done), {}});
  };
  for (std::size_t position = 0; position < text.size() && !tokens_.empty();) {
    const Match match = longest_match(text.substr(position));
    if (match.length == 0) {
      ++position;
      continue;
    }
    std::size_t begin = position;
    std::size_t end = position + match.length;
    position = end;
    const AddedToken& token = tokens_[match.token];
    if (token.special && !match_special) continue;
    if (token.single_word && touches_word(text.substr(0, begin), text.substr(end))) continue;
    if (token.lstrip) begin -= trailing_space(text.substr(0, begin));
    if (token.rstrip) end += leading_space(text.substr(end));
    add_text(std::max(begin, done));
    spans.push_back({text.substr(begin, end - begin), token.id});
    done = end;
  }
  add_text(text.size());
  return spans;
}

}  // namespace flashmha::text
