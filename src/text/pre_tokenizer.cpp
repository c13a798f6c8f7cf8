#include "text/pre_tokenizer.h"

#include <algorithm>

#include "text/unicode.h"
#include "text/utf8.h"

namespace flashmha::text {
namespace {

using Pieces = std::vector<std::string_view>;

struct Part : Range {
  bool is_match = false;
};

std::vector<Range> find_all(const Regex& regex, std::string_view text) {
  return regex.find_all(text);
}

std::vector<Range> find_all(const std::string& wanted, std::string_view text) {
  std::vector<Range> matches;
  std::size_t begin = text.find(wanted);
  while (begin != std::string_view::npos) {
    matches.push_back({begin, begin + wanted.size()});
    begin = text.find(wanted, begin + wanted.size());
  }
  return matches;
}

std::vector<Range> find_all(const Digits& digits, std::string_view text) {
  std::vector<Range> matches;
  for (std::size_t position = 0; position < text.size();) {
    const Utf8Char c = first_char(text.substr(position));
    const std::size_t end = position + c.length;
    if (is_numeric(c.code)) {
      const bool joins = !digits.individual && !matches.empty() && matches.back().end == position;
      if (joins) {
        matches.back().end = end;
      } else {
        matches.push_back({position, end});
      }
    }
    position = end;
  }
  return matches;
}

// The matches and what lies between them.
std::vector<Part> parts_of(const Split& split, std::string_view text) {
  const std::vector<Range> matches =
      std::visit([&](const auto& pattern) { return find_all(pattern, text); }, split.pattern);
  std::vector<Part> parts;
  parts.reserve(matches.size() * 2 + 1);
  std::size_t done = 0;
  for (const Range& match : matches) {
    if (done < match.begin) parts.push_back({{done, match.begin}, split.invert});
    parts.push_back({match, !split.invert});
    done = match.end;
  }
  if (done < text.size()) parts.push_back({{done, text.size()}, split.invert});
  return parts;
}

// Joins parts as the behavior says. A match goes with the neighbour that comes before it in the
// order of walking, unless that is a match that already went with its own.
void join(std::vector<Part>& parts, Behavior behavior) {
  const bool backwards = behavior == Behavior::merged_with_next;
  if (backwards) std::reverse(parts.begin(), parts.end());
  std::vector<Part> joined;
  joined.reserve(parts.size());
  bool previous_is_match = false;
  for (const Part& part : parts) {
    const bool joins = behavior == Behavior::contiguous ? part.is_match == previous_is_match
                                                        : part.is_match && !previous_is_match;
    if (joins && !joined.empty()) {
      joined.back().begin = std::min(joined.back().begin, part.begin);
      joined.back().end = std::max(joined.back().end, part.end);
    } else {
      joined.push_back(part);
    }
    previous_is_match = part.is_match;
  }
  if (backwards) std::reverse(joined.begin(), joined.end());
  parts = std::move(joined);
}

Pieces apply(const Split& split, const Pieces& pieces, std::deque<std::string>& /*made*/) {
  Pieces result;
  for (const std::string_view piece : pieces) {
    std::vector<Part> parts = parts_of(split, piece);
    const bool is_removed = split.behavior == Behavior::removed;
    if (!is_removed && split.behavior != Behavior::isolated) join(parts, split.behavior);
    for (const Part& part : parts) {
      if ((is_removed && part.is_match) || part.begin == part.end) continue;
      result.push_back(piece.substr(part.begin, part.end - part.begin));
    }
  }
  return result;
}

Pieces apply(const PrefixSpace& /*step*/, Pieces pieces, std::deque<std::string>& made) {
  for (std::string_view& piece : pieces) {
    if (!piece.starts_with(' ')) piece = made.emplace_back(" " + std::string(piece));
  }
  return pieces;
}

}  // namespace

std::vector<std::string_view> PreTokenizer::split(std::string_view text,
                                                  std::deque<std::string>& made) const {
  Pieces pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const Step& step : steps_) {
    pieces = std::visit([&](const auto& kind) { return apply(kind, pieces, made); }, step);
  }
  return pieces;
}

}  // namespace flashmha::text
