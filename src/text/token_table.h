// Tokens: a few hundred thousand short strings with an id each, in one piece of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/flat_map.h"

namespace flashmha::text {

class TokenTable {
 public:
  void reserve(std::size_t num_tokens);

  // Every token once, and every id once.
  void add(std::string_view token, std::uint32_t id);

  std::optional<std::uint32_t> find(std::string_view token) const;

 private:
  struct Entry {
    std::uint32_t begin = 0;  // in characters_
    std::uint32_t length = 0;
    std::uint32_t id = 0;
  };
  // The key of a token: its hash, or where that belongs to another token, a number made of it.
  std::uint64_t key_of(std::string_view token) const;

  std::string characters_;
  std::vector<Entry> entries_;
  FlatMap index_;  // key to the place in entries_
};

}  // namespace flashmha::text
