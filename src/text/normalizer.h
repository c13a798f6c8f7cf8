// What is done to a text before it is cut.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "text/pattern.h"
#include "text/piece.h"

namespace flashmha::text {

class Normalizer {
 public:
  struct Nfc {};
  // Puts a prefix before every part of a text that is not empty.
  struct Prepend {
    std::string prefix;
  };
  using Step = std::variant<Nfc, Prepend, Replace>;

  void add(const Step& step) { steps_.push_back(step); }
  bool empty() const { return steps_.empty(); }

  // Valid UTF-8 in, valid UTF-8 out.
  std::string normalize(const Piece& piece) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace flashmha::text
