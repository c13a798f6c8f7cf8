// Byte pair encoding: the symbols of a piece of text, merged pair by pair in the order of training.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/flat_map.h"
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

class Bpe {
 public:
  Bpe() = default;

  // Symbols are bytes, and the vocabulary says what bytes a token is. A byte that is no token is
  // unknown_id, or nothing if that is negative. Merges are in the order of their rank; the last of
  // equal ones counts. With ignore_merges a piece that is a token is that token, whatever the
  // merges say.
  Bpe(TokenTable vocabulary, const std::vector<Merge>& merges, bool ignore_merges,
      std::int64_t unknown_id);

  // Appends the ids of a piece.
  void encode(std::string_view piece, PieceCache& cache, std::vector<std::int64_t>& ids) const;

 private:
  using Symbols = std::vector<std::uint32_t>;

  void encode_uncached(std::string_view piece, std::vector<std::int64_t>& ids) const;
  void merge_short(Symbols& symbols) const;
  void merge_long(Symbols& symbols) const;

  // (rank << 32 | merged), or kNone: a lower one is merged first.
  std::uint64_t merge_of(std::uint32_t left, std::uint32_t right) const {
    return merges_.find(std::uint64_t{left} << 32U | right);
  }

  TokenTable vocabulary_;  // for ignore_merges
  FlatMap merges_;
  std::array<std::int64_t, 256> byte_ids_{};
  bool ignore_merges_ = false;
};

}  // namespace flashmha::text
