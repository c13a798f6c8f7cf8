#include "text/pattern.h"

#include "text/unicode.h"
#include "text/utf8.h"

namespace flashmha::text {
namespace {

std::vector<Range> find_each(const Regex& regex, std::string_view text) {
  return regex.find_all(text);
}

std::vector<Range> find_each(const std::string& wanted, std::string_view text) {
  std::vector<Range> matches;
  std::size_t begin = text.find(wanted);
  while (begin != std::string_view::npos) {
    matches.push_back({begin, begin + wanted.size()});
    begin = text.find(wanted, begin + wanted.size());
  }
  return matches;
}

std::vector<Range> find_each(const Digits& digits, std::string_view text) {
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

}  // namespace

std::vector<Range> find_all(const Pattern& pattern, std::string_view text) {
  return std::visit([&](const auto& kind) { return find_each(kind, text); }, pattern);
}

std::string Replace::apply(std::string_view text) const {
  std::string result;
  if (text.empty()) return result;  // not even an empty match
  std::size_t done = 0;
  for (const Range& match : find_all(pattern, text)) {
    result.append(text, done, match.begin - done).append(content);
    done = match.end;
  }
  return result.append(text, done);
}

}  // namespace flashmha::text
