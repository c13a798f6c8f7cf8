// UTF-8 as it comes: characters, and what to do with bytes that form none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace flashmha::text {

struct Utf8Char {
  char32_t code = 0;        // meaningful if valid
  std::uint8_t length = 0;  // bytes; of an invalid one: those that U+FFFD stands for, at least 1
  bool valid = false;
  bool incomplete = false;  // invalid only because the text ends here
};

// The first character of a text that is not empty. The bytes of an invalid one are its "maximal
// subpart" (Unicode 15, section 3.9), which is what Python, Rust and browsers replace by one
// U+FFFD.
Utf8Char first_char(std::string_view text);

// The number of bytes before the first that is not UTF-8.
std::size_t valid_length(std::string_view text);

void append_utf8(std::string& text, char32_t code);

// Joins bytes to valid UTF-8 as they come: invalid ones become U+FFFD, a character that is not
// complete yet is held back.
class Utf8Repair {
 public:
  void push(std::string_view bytes, std::string& out);
  void finish(std::string& out);

 private:
  std::string pending_;  // the beginning of a character, at most 3 bytes
};

}  // namespace flashmha::text
