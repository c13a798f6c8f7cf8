// Rows of tensors as floats, and how work on them is shared between threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/parallel.h"
#include "cpu/isa.h"
#include "flashmha/tensor.h"

namespace flashmha::cpu {

inline const RowKernels& row_kernels() {
  return *kernels().rows;
}

// The rows of a floating tensor: its last dimension, numbered over all others in row-major order.
class Rows {
 public:
  explicit Rows(const TensorView& view);

  std::int64_t count() const { return count_; }
  std::int64_t length() const { return length_; }

  // Elements [begin, begin + n) of row r as floats: in place if they are floats, else widened into
  // the buffer.
  const float* read(std::int64_t r, std::int64_t begin, std::int64_t n, float* buffer) const;
  const float* read(std::int64_t r, float* buffer) const { return read(r, 0, length_, buffer); }

  // Where to put them: the row itself if its elements are floats, else the buffer. finish() then
  // narrows the buffer into the row.
  float* target(std::int64_t r, std::int64_t begin, float* buffer) const;
  float* target(std::int64_t r, float* buffer) const { return target(r, 0, buffer); }
  void finish(std::int64_t r, std::int64_t begin, std::int64_t n, const float* values) const;
  void finish(std::int64_t r, const float* values) const { finish(r, 0, length_, values); }

  // Sets elements [begin, end) of row r to 0.
  void zero(std::int64_t r, std::int64_t begin, std::int64_t end) const;

 private:
  std::byte* element(std::int64_t r, std::int64_t begin) const;

  TensorView view_;
  std::int64_t count_;
  std::int64_t length_;
  bool evenly_spaced_;  // row r starts at r * row_stride_
  std::int64_t row_stride_ = 0;
};

// Views of equal shapes as rows that are as long as possible: contiguous ones become one row.
std::vector<Rows> elementwise_rows(std::initializer_list<TensorView> views);

// Elements that are worth a task of their own.
inline constexpr std::int64_t kTaskElements = 16384;
// Elements that are worked on at a time where rows can be cut: buffers stay in the L1 cache.
inline constexpr std::int64_t kChunk = 2048;

struct RowBuffer {
  explicit RowBuffer(std::int64_t n)
      : floats(std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(n))) {}
  operator float*() const { return floats.get(); }  // NOLINT: is its floats
  std::unique_ptr<float[]> floats;
};

// body(begin, end) for blocks of [0, count); `elements` is the work of one item.
template <class Body>
void parallel_blocks(std::int64_t count, std::int64_t elements, Body body) {
  const std::int64_t block =
      std::max<std::int64_t>(1, kTaskElements / std::max<std::int64_t>(1, elements));
  const std::int64_t tasks = (count + block - 1) / block;
  parallel_for(tasks, num_threads(), [&](std::int64_t task, int) {
    body(task * block, std::min(count, (task + 1) * block));
  });
}

// body(r, begin, n) for chunks of at most kChunk elements of all rows.
template <class Body>
void parallel_chunks(const Rows& rows, Body body) {
  const std::int64_t chunks = (rows.length() + kChunk - 1) / kChunk;
  parallel_blocks(rows.count() * chunks, std::min(kChunk, rows.length()),
                  [&](std::int64_t first, std::int64_t last) {
                    for (std::int64_t i = first; i < last; ++i) {
                      const std::int64_t begin = i % chunks * kChunk;
                      body(i / chunks, begin, std::min(kChunk, rows.length() - begin));
                    }
                  });
}

// total[0, length) += sums over rows: body(begin, end, sums) adds rows [begin, end) to sums. How
// rows are grouped depends on their number only, so the bits do not depend on threads. total may be
// null; then sums is null too.
template <class Body>
void reduce_rows(std::int64_t count, std::int64_t length, float* total, Body body) {
  const std::int64_t groups = std::clamp<std::int64_t>(count / 32, 1, 32);
  std::vector<float> sums(total ? static_cast<std::size_t>(groups * length) : 0);
  parallel_for(groups, num_threads(), [&](std::int64_t group, int) {
    body(group * count / groups, (group + 1) * count / groups,
         total ? sums.data() + group * length : nullptr);
  });
  if (!total) return;
  for (std::int64_t group = 0; group < groups; ++group) {
    row_kernels().add(total, sums.data() + group * length, length, total);
  }
}

// All elements of a small floating tensor of rank 1 as floats.
std::vector<float> to_floats(const TensorView& view);

}  // namespace flashmha::cpu
