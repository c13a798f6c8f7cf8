#include "text/pre_tokenizer.h"

#include <algorithm>

namespace flashmha::text {
namespace {

using Pieces = std::vector<Piece>;

struct Part : Range {
  bool is_match = false;
};

// The matches and what lies between them.
std::vector<Part> parts_of(const Split& split, std::string_view text) {
  const std::vector<Range> matches = find_all(split.pattern, text);
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
  for (const Piece& piece : pieces) {
    std::vector<Part> parts = parts_of(split, piece.text);
    const bool is_removed = split.behavior == Behavior::removed;
    if (!is_removed && split.behavior != Behavior::isolated) join(parts, split.behavior);
    for (const Part& part : parts) {
      if ((is_removed && part.is_match) || part.begin == part.end) continue;
      result.push_back({piece.text.substr(part.begin, part.end - part.begin),
                        part.begin == 0 ? piece.before : Before::something});
    }
  }
  return result;
}

Pieces apply(const PrefixSpace& /*step*/, Pieces pieces, std::deque<std::string>& made) {
  for (Piece& piece : pieces) {
    if (piece.text.starts_with(' ') || piece.before == Before::raw_bytes) continue;
    piece.text = made.emplace_back(" " + std::string(piece.text));
  }
  return pieces;
}

Pieces apply(const Metaspace& step, Pieces pieces, std::deque<std::string>& made) {
  const Replace spaces{.pattern = " ", .content = step.mark};
  for (Piece& piece : pieces) {
    std::string& text = made.emplace_back(spaces.apply(piece.text));
    const bool is_start = step.prepend == Metaspace::Prepend::first
                              ? piece.before == Before::nothing
                              : piece.before != Before::raw_bytes;
    if (is_start && step.prepend != Metaspace::Prepend::never && !text.starts_with(step.mark)) {
      text.insert(0, step.mark);
    }
    piece.text = text;
  }
  if (!step.split) return pieces;
  return apply(Split{.pattern = step.mark, .behavior = Behavior::merged_with_next}, pieces, made);
}

}  // namespace

std::vector<Piece> PreTokenizer::split(const Piece& text, std::deque<std::string>& made) const {
  Pieces pieces;
  if (!text.text.empty()) pieces.push_back(text);
  for (const Step& step : steps_) {
    pieces = std::visit([&](const auto& kind) { return apply(kind, pieces, made); }, step);
  }
  return pieces;
}

}  // namespace flashmha::text
