// Bytes as vocabularies write them, so that tokens are text in JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace flashmha::text {

// The bytes of a token of a byte-level vocabulary, where every byte is one printable character
// (Radford et al. 2019, GPT-2): printable Latin-1 stands for itself, the other 68 bytes are U+0100,
// U+0101, ... in their order; a space is U+0120. Empty if it has a character that
// stands for no byte.
std::optional<std::string> bytes_of_token(std::string_view token);

// The byte of a token such as <0xE2>, which SentencePiece has for what is no token ("byte
// fallback"); empty for all others. And the token of a byte.
std::optional<std::uint8_t> byte_of_token(std::string_view token);
std::string token_of_byte(std::uint8_t byte);

}  // namespace flashmha::text
