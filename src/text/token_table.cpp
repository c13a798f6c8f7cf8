#include "text/token_table.h"

#include <functional>

namespace flashmha::text {

void TokenTable::reserve(std::size_t num_tokens) {
  entries_.reserve(num_tokens);
  index_.reserve(num_tokens);
}

std::uint64_t TokenTable::key_of(std::string_view token) const {
  std::uint64_t key = std::hash<std::string_view>{}(token);
  for (;; ++key) {
    if (key == FlatMap::kNone) continue;
    const std::uint64_t place = index_.find(key);
    if (place == FlatMap::kNone) return key;
    const Entry& entry = entries_[place];
    if (std::string_view(characters_).substr(entry.begin, entry.length) == token) return key;
  }
}

void TokenTable::add(std::string_view token, std::uint32_t id) {
  index_.set(key_of(token), entries_.size());
  entries_.push_back({static_cast<std::uint32_t>(characters_.size()),
                      static_cast<std::uint32_t>(token.size()), id});
  characters_ += token;
}

std::optional<std::uint32_t> TokenTable::find(std::string_view token) const {
  const std::uint64_t place = index_.find(key_of(token));
  if (place == FlatMap::kNone) return std::nullopt;
  return entries_[place].id;
}

}  // namespace flashmha::text
