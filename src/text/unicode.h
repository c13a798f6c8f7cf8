// Properties of characters, and normal forms.
#pragma once

#include <string>
#include <string_view>

namespace flashmha::text {

bool is_white_space(char32_t code);  // White_Space: \s of a regular expression
bool is_word(char32_t code);         // \w: letters, marks, digits, connectors, joiners
bool is_numeric(char32_t code);      // Nd, Nl, No

// Valid UTF-8 in, valid UTF-8 out.
std::string to_nfc(std::string_view text);

}  // namespace flashmha::text
