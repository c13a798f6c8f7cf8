// The alphabet of byte-level vocabularies: every byte as one printable character, so that tokens
// can be written in JSON (Radford et al. 2019, GPT-2). Printable Latin-1 stands for itself, the
// other 68 bytes are U+0100, U+0101, ... in their order; a space is U+0120.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace flashmha::text {

// The bytes of a token; empty if it has a character that stands for no byte.
std::optional<std::string> bytes_of_token(std::string_view token);

}  // namespace flashmha::text
