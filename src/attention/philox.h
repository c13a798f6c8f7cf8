// Dropout as a pure function of (seed, offset, batch, head, row, column): one call of Philox gives
// eight 16-bit draws, for eight neighbouring columns. What a kernel needs is constexpr, so that a
// GPU computes the same bits with the same lines.
#pragma once

#include <cstdint>

#include "core/philox.h"
#include "flashmha/attention.h"

namespace flashmha {

// The dropout decisions of one (batch, head): which columns of a row are kept.
class DropoutRows {
 public:
  static constexpr int kColumnsPerBlock = 8;

  // batch_head = batch * num_heads_q + head.
  constexpr DropoutRows(const Dropout& dropout, std::int64_t batch_head)
      : key0_(static_cast<std::uint32_t>(dropout.seed)),
        key1_(static_cast<std::uint32_t>(dropout.seed >> 32) ^
              static_cast<std::uint32_t>(dropout.offset >> 32)),
        offset_(static_cast<std::uint32_t>(dropout.offset)),
        batch_head_(static_cast<std::uint32_t>(batch_head)),
        threshold_(keep_threshold(dropout.p)) {}

  // The same dropout for another head.
  constexpr DropoutRows at(std::int64_t batch_head) const {
    DropoutRows rows = *this;
    rows.batch_head_ = static_cast<std::uint32_t>(batch_head);
    return rows;
  }

  // Bit c is set if column 8 * column_block + c of the row is kept.
  constexpr std::uint32_t keep_bits(std::int64_t row, std::int64_t column_block) const {
    const PhiloxBlock draws = philox4x32({static_cast<std::uint32_t>(column_block),
                                          static_cast<std::uint32_t>(row), batch_head_, offset_},
                                         key0_, key1_);
    std::uint32_t bits = 0;
    for (int column = 0; column < kColumnsPerBlock; ++column) {
      const std::uint32_t draw = draws[static_cast<std::size_t>(column / 2)] >> (16 * (column % 2));
      bits |= static_cast<std::uint32_t>((draw & 0xFFFFu) < threshold_) << column;
    }
    return bits;
  }

  constexpr bool keep(std::int64_t row, std::int64_t column) const {
    return (keep_bits(row, column / kColumnsPerBlock) >> (column % kColumnsPerBlock)) & 1u;
  }

  // A draw of 16 bits keeps its element if it is below this: the keep rate is 1 - p to within
  // 2^-17.
  static constexpr std::uint32_t keep_threshold(float p) {
    return static_cast<std::uint32_t>((1.0 - static_cast<double>(p)) * 65536.0 + 0.5);
  }

 private:
  std::uint32_t key0_;
  std::uint32_t key1_;
  std::uint32_t offset_;
  std::uint32_t batch_head_;
  std::uint32_t threshold_;
};

}  // namespace flashmha
