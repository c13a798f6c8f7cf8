// Stop strings in a text that comes in pieces.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flashmha::model {

// The result does not depend on how a text is cut: it ends before the stop string whose last
// character comes first (of several, the longest).
class StopStrings {
 public:
  explicit StopStrings(std::span<const std::string> strings)
      : strings_(strings.begin(), strings.end()) {}

  // Text that is no part of a stop string, whatever comes. Empty once a stop string was found.
  std::string push(std::string_view piece);
  // What was held back, after the last piece.
  std::string finish();

  bool found() const { return found_; }

 private:
  std::vector<std::string> strings_;
  std::string held_;
  bool found_ = false;
};

}  // namespace flashmha::model
