// A tile of 16-bit elements in shared memory, with rows of kColumns elements, cut into chunks of 16
// bytes. Chunks are permuted within a row, so that the 8 rows which one phase of ldmatrix reads,
// and the 8 chunks which one phase of a 16-byte store writes, lie in different banks.
#pragma once

#include <cstdint>

namespace flashmha::cuda {

template <int kColumns>
struct SharedTile {
  static constexpr int kChunks = kColumns / 8;
  static_assert(kColumns % 32 == 0);

  std::uint32_t address;  // in the shared window, 128-byte aligned

  explicit __device__ SharedTile(const void* memory)
      : address(static_cast<std::uint32_t>(__cvta_generic_to_shared(memory))) {}
  explicit __device__ SharedTile(std::uint32_t the_address) : address(the_address) {}

  // Byte address of a chunk. Rows of an odd multiple of 64 bytes alternate between the halves of
  // the banks by themselves.
  __device__ __forceinline__ std::uint32_t chunk(int row, int index) const {
    const int permuted = kColumns % 64 == 0 ? index ^ (row & 7) : index ^ ((row >> 1) & 3);
    return address + static_cast<std::uint32_t>((row * kChunks + permuted) * 16);
  }

  // Four 8x8 matrices: a 16x16 block, whose lower left quarter comes second (an A fragment).
  __device__ __forceinline__ void load_a(int row, int column, int lane,
                                         std::uint32_t (&r)[4]) const {
    load(fragment(row, column, lane & 15, lane >> 4), r);
  }
  // The same of the transposed tile: its element (row, column) is ours at (column, row).
  __device__ __forceinline__ void load_a_transposed(int row, int column, int lane,
                                                    std::uint32_t (&r)[4]) const {
    load_transposed(fragment(column, row, (lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1), r);
  }
  // The rows are columns of B: r[0..1] are b0 b1 of rows [row, row + 8), r[2..3] of the next 8.
  __device__ __forceinline__ void load_b(int row, int column, int lane,
                                         std::uint32_t (&r)[4]) const {
    load(fragment(row, column, (lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1), r);
  }
  // The rows are rows of B: r[0..1] are b0 b1 of columns [column, column + 8), r[2..3] of the next.
  __device__ __forceinline__ void load_b_transposed(int row, int column, int lane,
                                                    std::uint32_t (&r)[4]) const {
    load_transposed(fragment(row, column, lane & 15, lane >> 4), r);
  }

  // 16 bytes from global memory, or zeros; arrives by wait_for_copies().
  __device__ __forceinline__ void copy_chunk(int row, int index, const void* source,
                                             bool present) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(chunk(row, index)),
                 "l"(source), "r"(present ? 16 : 0)
                 : "memory");
  }
  __device__ __forceinline__ void store_chunk(int row, int index, const uint4& value) const {
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(chunk(row, index)), "r"(value.x),
                 "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
  }
  __device__ __forceinline__ uint4 load_chunk(int row, int index) const {
    uint4 value;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(chunk(row, index))
                 : "memory");
    return value;
  }
  // Two elements at an even column.
  __device__ __forceinline__ void store_pair(int row, int column, std::uint32_t pair) const {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(chunk(row, column / 8) + (column % 8) * 2),
                 "r"(pair)
                 : "memory");
  }

 private:
  // chunk(row + lane_row, column / 8 + half) for a row that is a multiple of 8 and a column that is
  // one of 16: what depends on the thread comes first, so that it is computed once.
  __device__ __forceinline__ std::uint32_t fragment(int row, int column, int lane_row,
                                                    int half) const {
    if constexpr (kColumns % 64 == 0) {
      const std::uint32_t corner =
          address +
          static_cast<std::uint32_t>(lane_row * kChunks * 16 + ((half ^ (lane_row & 7)) << 4));
      return (corner ^ static_cast<std::uint32_t>((column / 8 % 8) << 4)) +
             static_cast<std::uint32_t>(row * kChunks * 16 + column / 64 * 128);
    } else {
      return chunk(row + lane_row, column / 8 + half);
    }
  }
  __device__ __forceinline__ static void load(std::uint32_t source, std::uint32_t (&r)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(source));
  }
  __device__ __forceinline__ static void load_transposed(std::uint32_t source,
                                                         std::uint32_t (&r)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(source));
  }
};

// One float from global memory, or 0; arrives by wait_for_copies().
__device__ __forceinline__ void copy_float(float* shared, const float* source, bool present) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(source), "r"(present ? 4 : 0)
               : "memory");
}

// Waits for all copies of this thread; a barrier makes those of the others visible.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace flashmha::cuda
