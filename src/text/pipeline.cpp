#include "text/pipeline.h"

#include <deque>

#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace flashmha::text {
namespace {

// The number of bytes that a text starts with and that are no UTF-8.
std::size_t invalid_length(std::string_view text) {
  std::size_t length = 0;
  while (length < text.size()) {
    const Utf8Char c = first_char(text.substr(length));
    if (c.valid) break;
    length += c.length;
  }
  return length;
}

}  // namespace

std::string Pipeline::text_of(std::string_view name) const {
  std::optional<std::string> bytes;
  if (unit == Unit::byte) bytes = bytes_of_token(name);
  return bytes ? *bytes : std::string(name);
}

void Pipeline::encode(std::string_view text, bool match_special,
                      std::vector<std::int64_t>& result) const {
  PieceCache cache(text.size());
  Before before = Before::nothing;
  for (const Span& span : added_tokens.split(text, match_special)) {
    if (span.id) {
      result.push_back(*span.id);
      before = Before::something;
      continue;
    }
    // Bytes that are no text are a piece of their own: no rule about text applies to them, and the
    // model knows all bytes.
    std::string_view rest = span.text;
    while (!rest.empty()) {
      const std::size_t valid = valid_length(rest);
      encode_valid({rest.substr(0, valid), before}, match_special, cache, result);
      rest.remove_prefix(valid);
      const std::size_t invalid = invalid_length(rest);
      model.encode(rest.substr(0, invalid), cache, result);
      rest.remove_prefix(invalid);
      before = Before::raw_bytes;
    }
  }
}

void Pipeline::encode_valid(Piece text, bool match_special, PieceCache& cache,
                            std::vector<std::int64_t>& result) const {
  std::string normalized;
  if (!normalizer.empty()) {
    normalized = normalizer.normalize(text);
    text.text = normalized;
  }
  for (const Span& span : normalized_added_tokens.split(text.text, match_special)) {
    if (span.id) {
      result.push_back(*span.id);
      text.before = Before::something;
      continue;
    }
    std::deque<std::string> made;
    for (const Piece& piece : pre_tokenizer.split({span.text, text.before}, made)) {
      model.encode(piece.text, cache, result);
    }
  }
}

}  // namespace flashmha::text
