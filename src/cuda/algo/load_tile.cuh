// From rows in global memory to a tile in shared memory.
#pragma once

#include "cuda/tile/shared_tile.cuh"

namespace flashmha::cuda {

// Up to 8 elements of a row, one by one; the rest is zero.
template <class T>
__device__ __forceinline__ uint4 load_elements(const T* source, int count) {
  std::uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) words[i / 2] |= static_cast<std::uint32_t>(source[i].bits) << (16 * (i % 2));
  }
  return {words[0], words[1], words[2], words[3]};
}

// Rows [first, first + kRows) of `rows` become rows [0, kRows) of the tile. Rows at `limit` and
// behind, rows that are null, and columns at `columns` and behind become zero: they are never read.
// Finished after wait_for_copies() and a barrier of the block.
template <int kRows, int kThreads, bool kMayBeUnaligned, int kColumns, class RowSource>
__device__ __forceinline__ void load_tile(const SharedTile<kColumns>& tile, const RowSource& rows,
                                          int first, int limit, int columns, bool aligned,
                                          int thread) {
  constexpr int kChunks = SharedTile<kColumns>::kChunks;
  constexpr int kTotal = kRows * kChunks;
  static_assert(kTotal % kThreads == 0);
  const bool by_chunks = !kMayBeUnaligned || aligned;
  if (by_chunks) {
#pragma unroll
    for (int n = 0; n < kTotal / kThreads; ++n) {
      const int row = (n * kThreads + thread) / kChunks;
      const int index = (n * kThreads + thread) % kChunks;
      const bool inside = first + row < limit && index * 8 < columns;
      const auto* source = inside ? rows.row(first + row) : nullptr;
      const bool present = source != nullptr;
      tile.copy_chunk(row, index, present ? source + index * 8 : rows.data, present);
    }
  }
  if constexpr (kMayBeUnaligned) {
#pragma unroll 1
    for (int n = by_chunks ? kTotal : thread; n < kTotal; n += kThreads) {
      const int row = n / kChunks;
      const int index = n % kChunks;
      uint4 value = {};
      if (first + row < limit && index * 8 < columns) {
        const auto* source = rows.row(first + row);
        if (source != nullptr) value = load_elements(source + index * 8, columns - index * 8);
      }
      tile.store_chunk(row, index, value);
    }
  }
}

}  // namespace flashmha::cuda
