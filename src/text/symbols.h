// What merging starts with: the tokens of a piece's bytes or characters.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "text/flat_map.h"

namespace flashmha::text {

enum class Unit : std::uint8_t { byte, character };

// What becomes of units that are no token.
struct Unknown {
  std::optional<std::uint32_t> id;  // they vanish if there is none
  bool fuse = false;                // those that follow each other are one
};

class Symbols {
 public:
  explicit Symbols(Unit unit = Unit::byte, const Unknown& unknown = {})
      : unit_(unit), unknown_(unknown) {}

  void add_character(char32_t code, std::uint32_t id) { characters_.set(code, id); }

  // The token of a byte: of every one, or of those of a character that is no token.
  void add_byte(std::uint8_t byte, std::uint32_t id) { bytes_[byte] = id; }

  // Appends the tokens of a piece. A character that is no token is the tokens of its bytes if all
  // are there, and so are bytes that are no UTF-8.
  void append(std::string_view piece, std::vector<std::uint32_t>& tokens) const;

 private:
  static constexpr std::uint32_t kNone = ~0U;

  bool append_bytes(std::string_view character, std::vector<std::uint32_t>& tokens) const;

  Unit unit_;
  Unknown unknown_;
  FlatMap characters_;  // code to token
  std::array<std::uint32_t, 256> bytes_ = [] {
    std::array<std::uint32_t, 256> none{};
    none.fill(kNone);
    return none;
  }();
};

}  // namespace flashmha::text
