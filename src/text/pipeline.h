// What a tokenizer is made of, in the order in which a text passes through it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/symbols.h"
#include "text/token_table.h"

namespace flashmha::text {

struct Token {
  std::string text;  // what the decoder gets: in a byte-level vocabulary the token's bytes
  bool special = false;
};

struct Pipeline {
  TokenFinder added_tokens;  // looked for in the text as it came
  Normalizer normalizer;
  TokenFinder normalized_added_tokens;  // and these in the normalised text
  PreTokenizer pre_tokenizer;
  Unit unit = Unit::byte;  // of the vocabulary: bytes in the letters of ByteLevel, or characters
  Bpe model;
  Decoder decoder;
  // What the post-processor puts around a text.
  std::vector<std::int64_t> prefix;
  std::vector<std::int64_t> suffix;

  std::vector<Token> tokens;  // [id]; an id without a token has an empty one
  TokenTable ids;             // as tokens are written in tokenizer.json
  std::optional<std::int64_t> bos;
  std::optional<std::int64_t> eos;

  // The text of a token by its name.
  std::string text_of(std::string_view name) const;

  void encode(std::string_view text, bool match_special, std::vector<std::int64_t>& result) const;

 private:
  void encode_valid(Piece text, bool match_special, PieceCache& cache,
                    std::vector<std::int64_t>& result) const;
};

}  // namespace flashmha::text
