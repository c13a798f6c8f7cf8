// Regular expressions as tokenizer.json means them: Oniguruma's, over UTF-8.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace flashmha::text {

struct Range {
  std::size_t begin = 0;
  std::size_t end = 0;
};

class Regex {
 public:
  // Throws invalid_argument, beginning with `where`, for what is no pattern.
  Regex(std::string pattern, const std::string& where);

  // All matches in valid UTF-8, from left to right, not overlapping; an empty one never directly
  // after another. Throws invalid_argument when a search takes far more steps than the text has
  // bytes: patterns exist that would take years.
  std::vector<Range> find_all(std::string_view text) const;

 private:
  struct Compiled;

  std::string pattern_;
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace flashmha::text
