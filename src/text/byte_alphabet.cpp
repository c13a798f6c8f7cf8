#include "text/byte_alphabet.h"

#include <array>
#include <charconv>

#include "core/check.h"
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

std::optional<std::uint8_t> byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with('>')) return std::nullopt;
  std::uint8_t byte = 0;
  const char* end = token.data() + 5;
  const auto [read, error] = std::from_chars(token.data() + 3, end, byte, 16);
  if (error != std::errc{} || read != end) return std::nullopt;
  return byte;
}

std::string token_of_byte(std::uint8_t byte) {
  return fmt::format("<0x{:02X}>", byte);
}

}  // namespace flashmha::text
