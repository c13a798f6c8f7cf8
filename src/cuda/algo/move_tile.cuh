// Between rows in global memory and tiles in shared memory.
#pragma once

#include "cuda/algo/sequence.cuh"
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

// The same as load_tile for aligned rows at even distances: each thread walks down one column of
// chunks.
template <int kRows, int kThreads, int kColumns, class T>
__device__ __forceinline__ void load_even_rows(const SharedTile<kColumns>& tile,
                                               const EvenRows<T>& rows, int first, int limit,
                                               int columns, int thread) {
  constexpr int kChunks = SharedTile<kColumns>::kChunks;
  constexpr int kStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kStep == 0);
  const int row = thread / kChunks;
  const int index = thread % kChunks;
  const int num_rows = index * 8 < columns ? limit - first : 0;
  const T* source = rows.row(first + row) + index * 8;
  const std::int64_t step = rows.stride * kStep;
#pragma unroll
  for (int n = 0; n < kRows; n += kStep) {
    tile.copy_chunk(row + n, index, source, row + n < num_rows);
    source += step;
  }
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
  if constexpr (!kMayBeUnaligned && kThreads % kChunks == 0) {
    load_even_rows<kRows, kThreads>(tile, rows, first, limit, columns, thread);
  } else {
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
}

// Rows [first, first + num_rows) of the tile go to rows [offset + first, ...) in global memory, by
// one warp; rows at `limit` and behind are left out.
template <bool kMayBeUnaligned, int kColumns, class T>
__device__ __forceinline__ void store_tile_rows(const SharedTile<kColumns>& tile, int first,
                                                int num_rows, const EvenRows<T>& rows, int offset,
                                                std::int64_t limit, int columns, bool aligned,
                                                int lane) {
  constexpr int kChunks = SharedTile<kColumns>::kChunks;
#pragma unroll 4
  for (int n = lane; n < num_rows * kChunks; n += 32) {
    const int tile_row = first + n / kChunks;
    const int column = n % kChunks * 8;
    if (offset + tile_row >= limit || column >= columns) continue;
    const uint4 chunk = tile.load_chunk(tile_row, n % kChunks);
    T* to = rows.data + (offset + tile_row) * rows.stride + column;
    if (!kMayBeUnaligned || aligned) {
      *reinterpret_cast<uint4*>(to) = chunk;
      continue;
    }
    const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (column + i < columns) {
        to[i].bits = static_cast<std::uint16_t>(words[i / 2] >> (16 * (i % 2)));
      }
    }
  }
}

}  // namespace flashmha::cuda
