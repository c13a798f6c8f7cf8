// What is done to a text before it is cut.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace flashmha::text {

class Normalizer {
 public:
  struct Nfc {};
  using Step = std::variant<Nfc>;

  void add(const Step& step) { steps_.push_back(step); }
  bool empty() const { return steps_.empty(); }

  // Valid UTF-8 in, valid UTF-8 out.
  std::string normalize(std::string_view text) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace flashmha::text
