#include "text/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "text/utf8.h"

namespace flashmha::text {
namespace {

constexpr std::size_t kNumChars = 0x100 + 68;

// [character] is its byte, or -1.
constexpr std::array<std::int16_t, kNumChars> byte_table() {
  std::array<std::int16_t, kNumChars> table{};
  std::int16_t next = 0x100;
  for (std::int16_t byte = 0; byte < 0x100; ++byte) {
    const bool stands_for_itself =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
    table[static_cast<std::size_t>(byte)] = -1;
    table[static_cast<std::size_t>(stands_for_itself ? byte : next++)] = byte;
  }
  return table;
}

}  // namespace

std::optional<std::string> bytes_of_token(std::string_view token) {
  static constexpr std::array<std::int16_t, kNumChars> kBytes = byte_table();
  std::string bytes;
  while (!token.empty()) {
    const Utf8Char c = first_char(token);
    if (!c.valid || c.code >= kNumChars || kBytes[c.code] < 0) return std::nullopt;
    bytes += static_cast<char>(kBytes[c.code]);
    token.remove_prefix(c.length);
  }
  return bytes;
}

}  // namespace flashmha::text
