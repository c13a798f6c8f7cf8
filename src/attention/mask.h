// Which keys a query may see: one interval per row. The same arithmetic serves checks, planning,
// the reference and every kernel (constexpr: on a GPU, too), so that causal, window and padding
// cannot disagree.
#pragma once

#include <algorithm>
#include <cstdint>

#include "flashmha/plan.h"

namespace flashmha {

// Keys [begin, end) of a sequence; empty if begin >= end.
struct KeyRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  constexpr bool empty() const { return begin >= end; }
};

// A band laid over one sequence: query i sees keys [i + shift - left, i + shift + right].
struct SequenceBand {
  std::int64_t left = -1;   // -1: unbounded
  std::int64_t right = -1;  // -1: unbounded
  std::int64_t shift = 0;
  std::int64_t seqlen_k = 0;

  constexpr SequenceBand(const Problem::Band& band, std::int64_t num_queries, std::int64_t num_keys)
      : left(band.left),
        right(band.right),
        shift(band.align == MaskAlign::bottom_right ? num_keys - num_queries : 0),
        seqlen_k(num_keys) {}

  constexpr std::int64_t begin(std::int64_t row) const {
    return left < 0 ? 0 : std::clamp<std::int64_t>(row + shift - left, 0, seqlen_k);
  }
  constexpr std::int64_t end(std::int64_t row) const {
    return right < 0 ? seqlen_k : std::clamp<std::int64_t>(row + shift + right + 1, 0, seqlen_k);
  }

  constexpr KeyRange keys(std::int64_t row) const { return {begin(row), end(row)}; }

  // Keys that at least one of the rows [first, last] sees (both bounds rise with the row).
  constexpr KeyRange keys_of_any(std::int64_t first, std::int64_t last) const {
    return {begin(first), end(last)};
  }
  // Keys that all of the rows [first, last] see: a tile inside needs no masking.
  constexpr KeyRange keys_of_all(std::int64_t first, std::int64_t last) const {
    return {begin(last), end(first)};
  }
  // Query rows [begin, end) of a sequence of seqlen_q rows that see at least one of the keys
  // [first, last].
  constexpr KeyRange rows_of_any(std::int64_t first, std::int64_t last,
                                 std::int64_t seqlen_q) const {
    const std::int64_t low = right < 0 ? 0 : first - shift - right;
    const std::int64_t high = left < 0 ? seqlen_q : last - shift + left + 1;
    return {std::clamp<std::int64_t>(low, 0, seqlen_q),
            std::clamp<std::int64_t>(high, 0, seqlen_q)};
  }
};

}  // namespace flashmha
