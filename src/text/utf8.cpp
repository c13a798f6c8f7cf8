#include "text/utf8.h"

#include <cstring>

namespace flashmha::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// What the first byte of a character says: its length, and the range of the second byte, which
// excludes overlong forms, surrogates and codes above U+10FFFF.
struct Lead {
  std::uint8_t length;
  std::uint8_t low = 0x80;
  std::uint8_t high = 0xBF;
};

Lead lead_of(std::uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

// The number of ASCII characters that a text starts with, eight at a time.
std::size_t ascii_length(std::string_view text) {
  std::size_t position = 0;
  for (; position + 8 <= text.size(); position += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data() + position, 8);
    if ((word & 0x8080808080808080U) != 0) break;
  }
  while (position < text.size() && static_cast<std::uint8_t>(text[position]) < 0x80)
    ++position;
  return position;
}

}  // namespace

Utf8Char first_char(std::string_view text) {
  const auto byte = static_cast<std::uint8_t>(text[0]);
  const Lead lead = lead_of(byte);
  if (lead.length == 0) return {.length = 1};
  if (lead.length == 1) return {.code = byte, .length = 1, .valid = true};
  char32_t code = byte & (0x7FU >> lead.length);
  for (std::uint8_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {.length = i, .incomplete = true};
    const auto next = static_cast<std::uint8_t>(text[i]);
    const bool fits = i == 1 ? next >= lead.low && next <= lead.high : (next & 0xC0U) == 0x80;
    if (!fits) return {.length = i};
    code = code << 6U | (next & 0x3FU);
  }
  return {.code = code, .length = lead.length, .valid = true};
}

std::size_t valid_length(std::string_view text) {
  std::size_t position = 0;
  for (;;) {
    position += ascii_length(text.substr(position));
    if (position == text.size()) return position;
    const Utf8Char c = first_char(text.substr(position));
    if (!c.valid) return position;
    position += c.length;
  }
}

void append_utf8(std::string& text, char32_t code) {
  const auto put = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0U | code >> 6U);
  } else {
    if (code < 0x10000) {
      put(0xE0U | code >> 12U);
    } else {
      put(0xF0U | code >> 18U);
      put(0x80U | (code >> 12U & 0x3FU));
    }
    put(0x80U | (code >> 6U & 0x3FU));
  }
  put(0x80U | (code & 0x3FU));
}

void Utf8Repair::push(std::string_view bytes, std::string& out) {
  std::string joined;
  if (!pending_.empty()) {
    joined = pending_ + std::string(bytes);
    bytes = joined;
    pending_.clear();
  }
  while (!bytes.empty()) {
    const std::size_t valid = valid_length(bytes);
    out += bytes.substr(0, valid);
    bytes.remove_prefix(valid);
    if (bytes.empty()) return;
    const Utf8Char broken = first_char(bytes);
    if (broken.incomplete) {
      pending_ = bytes;
      return;
    }
    out += kReplacement;
    bytes.remove_prefix(broken.length);
  }
}

void Utf8Repair::finish(std::string& out) {
  if (!pending_.empty()) out += kReplacement;
  pending_.clear();
}

}  // namespace flashmha::text
