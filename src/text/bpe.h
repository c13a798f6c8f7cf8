// Byte pair encoding: the symbols of a piece of text, merged pair by pair in the order of training.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "text/flat_map.h"
#include "text/symbols.h"
#include "text/token_table.h"

namespace flashmha::text {

struct Merge {
  std::uint32_t left = 0;
  std::uint32_t right = 0;
  std::uint32_t merged = 0;
};

// Remembers the pieces of one text: most words come again. Direct-mapped, of a fixed size.
class PieceCache {
 public:
  explicit PieceCache(std::size_t text_bytes);

  static constexpr std::size_t kMaxBytes = 24;
  static constexpr std::size_t kMaxIds = 9;
  struct Entry {
    std::uint8_t length = 0;  // 0: free
    std::uint8_t num_ids = 0;
    std::array<char, kMaxBytes> piece{};
    std::array<std::uint32_t, kMaxIds> ids{};

    bool holds(std::string_view wanted) const {
      return std::string_view(piece.data(), length) == wanted;
    }
  };
  // Where a piece of 1 to kMaxBytes bytes is or would be.
  Entry& entry_of(std::string_view piece);

 private:
  std::vector<Entry> entries_;  // a power of two of them
};

struct BpeOptions {
  // A piece that is a token of this vocabulary is that token, whatever the merges say
  // ("ignore_merges").
  std::optional<TokenTable> whole_pieces;
  // No merge leaves its word: words may be encoded one by one.
  bool merges_stay_in_words = false;
};

// Words begin with one or more of these (U+2581) where spaces became characters.
constexpr std::string_view kWordMark = "\xE2\x96\x81";

// Whether a token goes on where a new word begins.
bool leaves_word(std::string_view token);

class Bpe {
 public:
  Bpe() = default;

  // Merges are in the order of their rank; the last of equal ones counts.
  Bpe(Symbols symbols, const std::vector<Merge>& merges, BpeOptions options = {});

  // Appends the ids of a piece.
  void encode(std::string_view piece, PieceCache& cache, std::vector<std::int64_t>& ids) const;

 private:
  using Tokens = std::vector<std::uint32_t>;

  void encode_word(std::string_view piece, PieceCache& cache, std::vector<std::int64_t>& ids) const;
  void encode_uncached(std::string_view piece, std::vector<std::int64_t>& ids) const;
  void merge_short(Tokens& tokens) const;
  void merge_long(Tokens& tokens) const;

  // (rank << 32 | merged), or kNone: a lower one is merged first.
  std::uint64_t merge_of(std::uint32_t left, std::uint32_t right) const {
    return merges_.find(std::uint64_t{left} << 32U | right);
  }

  Symbols symbols_;
  FlatMap merges_;
  BpeOptions options_;
};

}  // namespace flashmha::text
