// Part of a text, on its way through the steps of a tokenizer.
#pragma once

#include <cstdint>
#include <string_view>

namespace flashmha::text {

// Some steps put a prefix where a text, or a part of it, starts; bytes that are no text interrupt a
// part without starting another.
enum class Before : std::uint8_t { nothing, something, raw_bytes };

// A piece refers to the text, or to a string that a step made.
struct Piece {
  std::string_view text;
  Before before = Before::something;
};

}  // namespace flashmha::text
