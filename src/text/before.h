// What stands before a part of a text. Some steps put a prefix where a text, or a part of it,
// starts; bytes that are no text interrupt a part without starting another.
#pragma once

#include <cstdint>

namespace flashmha::text {

enum class Before : std::uint8_t { nothing, something, raw_bytes };

}  // namespace flashmha::text
