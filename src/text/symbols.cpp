#include "text/symbols.h"

#include <algorithm>

#include "text/utf8.h"

namespace flashmha::text {

// Whether all of a character's bytes are tokens.
bool Symbols::append_bytes(std::string_view character, std::vector<std::uint32_t>& tokens) const {
  const auto token_of = [&](char byte) { return bytes_[static_cast<unsigned char>(byte)]; };
  const bool are_tokens = std::none_of(character.begin(), character.end(),
                                       [&](char byte) { return token_of(byte) == kNone; });
  if (!are_tokens) return false;
  for (const char byte : character)
    tokens.push_back(token_of(byte));
  return true;
}

void Symbols::append(std::string_view piece, std::vector<std::uint32_t>& tokens) const {
  // Written before the next token that is no byte of a character, as the `tokenizers` library does.
  bool is_unknown_due = false;
  const auto write_unknown = [&] {
    if (is_unknown_due && unknown_.id) tokens.push_back(*unknown_.id);
    is_unknown_due = false;
  };
  while (!piece.empty()) {
    Utf8Char c{.length = 1};
    std::uint64_t token = FlatMap::kNone;
    if (unit_ == Unit::byte) {
      const std::uint32_t byte = bytes_[static_cast<unsigned char>(piece[0])];
      if (byte != kNone) token = byte;
    } else {
      c = first_char(piece);
      if (c.valid) token = characters_.find(c.code);
    }
    if (token != FlatMap::kNone) {
      write_unknown();
      tokens.push_back(static_cast<std::uint32_t>(token));
    } else if (unit_ == Unit::byte || !append_bytes(piece.substr(0, c.length), tokens)) {
      if (!unknown_.fuse) write_unknown();
      is_unknown_due = true;
    }
    piece.remove_prefix(c.length);
  }
  write_unknown();
}

}  // namespace flashmha::text
