// What a tokenizer is made of, in the order in which a text passes through it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"

namespace flashmha::text {

struct Token {
  std::string text;  // the bytes that it decodes to
  bool special = false;
};

struct Pipeline {
  TokenFinder added_tokens;
  Bpe model;
  // What the post-processor puts around a text.
  std::vector<std::int64_t> prefix;
  std::vector<std::int64_t> suffix;

  std::vector<Token> tokens;  // [id]; an id without a token has an empty one
  std::unordered_map<std::string, std::uint32_t> ids;
  std::optional<std::int64_t> bos;
  std::optional<std::int64_t> eos;
};

}  // namespace flashmha::text
