#include "model/stop_strings.h"

#include <algorithm>
#include <utility>

namespace flashmha::model {
namespace {

// Length of the longest end of text that is a beginning of string, but not all of it.
std::size_t open_match(std::string_view text, std::string_view string) {
  std::size_t length = std::min(text.size(), string.size() - 1);
  while (!text.ends_with(string.substr(0, length)))
    --length;
  return length;
}

}  // namespace

std::string StopStrings::push(std::string_view piece) {
  if (found_) return {};
  held_ += piece;
  std::size_t first_end = std::string::npos;
  std::size_t begin = 0;
  std::size_t held_back = 0;
  for (const std::string& string : strings_) {
    held_back = std::max(held_back, open_match(held_, string));
    const std::size_t at = held_.find(string);
    if (at == std::string::npos) continue;
    const std::size_t end = at + string.size();
    if (end < first_end || (end == first_end && at < begin)) begin = at;
    first_end = std::min(first_end, end);
    found_ = true;
  }
  std::string certain = held_.substr(0, found_ ? begin : held_.size() - held_back);
  held_.erase(0, found_ ? held_.size() : certain.size());
  return certain;
}

std::string StopStrings::finish() {
  return std::exchange(held_, {});
}

}  // namespace flashmha::model
