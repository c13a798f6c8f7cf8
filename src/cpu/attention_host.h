#pragma once

// What forward.cpp, backward.cpp and decode.cpp share: scratch memory from the caller's workspace,
// and the plain-data descriptions that the kernels take.

#include <cstddef>
#include <cstdint>
#include <span>

#include "attention/mask.h"
#include "attention/philox.h"
#include "attention/sequence.h"
#include "cpu/attention_tile.h"
#include "flashmha/plan.h"

namespace flashmha::cpu {

// Hands out 64-byte aligned arrays of a memory block, or, without memory, measures what they take.
class Arena {
 public:
  Arena() = default;
  explicit Arena(std::span<std::byte> memory) : memory_(memory.data()) {}

  template <class T>
  T* take(std::int64_t count) {
    const std::size_t begin = used_;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return memory_ ? reinterpret_cast<T*>(memory_ + begin) : nullptr;
  }

  std::size_t used() const { return used_; }

  static constexpr std::size_t kAlignment = 64;

 private:
  std::byte* memory_ = nullptr;
  std::size_t used_ = 0;
};

// Workspace = what all workers share, then one slice for each worker.
struct Slices {
  std::span<std::byte> workspace;
  std::size_t shared_bytes;
  std::size_t worker_bytes;

  int num_workers() const {
    return static_cast<int>((workspace.size() - shared_bytes) / worker_bytes);
  }
  std::span<std::byte> shared() const { return workspace.first(shared_bytes); }
  std::span<std::byte> worker(int index) const {
    return workspace.subspan(shared_bytes + static_cast<std::size_t>(index) * worker_bytes,
                             worker_bytes);
  }
};

inline std::int64_t ceil_div(std::int64_t count, std::int64_t block) {
  return (count + block - 1) / block;
}
inline std::int64_t pad_to(std::int64_t count, std::int64_t block) {
  return ceil_div(count, block) * block;
}
// Stride of rows of floats: whole vectors of every tier, and an odd number of cache lines, so that
// the rows of a block fall into different sets of the cache.
inline std::int64_t row_stride(std::int64_t num_columns) {
  return ceil_div(num_columns, 16) % 2 == 1 ? pad_to(num_columns, 16)
                                            : pad_to(num_columns, 16) + 16;
}

Storage storage_of(DType dtype);

// Keys and values of a call, wherever its kind keeps them.
const TensorView& keys_of(const Problem& problem, const AttentionCall& call);
const TensorView& values_of(const Problem& problem, const AttentionCall& call);

// Spans of the queries [first, first + count).
void fill_spans(const SequenceBand& band, std::int64_t first, std::int64_t count, Span* spans);

// One pointer for each of the keys [first, first + count) of a head, through pages if need be.
void fill_pointers(const Problem& problem, const AttentionCall& call, const TensorView& tensor,
                   const Sequence& sequence, std::int64_t head_kv, KeyRange keys,
                   const void** pointers);

// The score options of one head; all off if the problem has none. `shift` aligns ALiBi. The dropout
// object is made in the memory given and must outlive the result.
bool has_score_options(const Problem& problem);
ScoreOptions score_options(const Problem& problem, const AttentionCall& call,
                           const Sequence& sequence, std::int64_t head_q, DropoutRows* dropout);

// The head's logit in the denominator; -inf without sinks.
float sink_of(const AttentionCall& call, std::int64_t head_q);

// 1 / (1 - p)
float dropout_scale(const Problem& problem);

// Rotates the first 2 * cos.size(1) elements of a row by the angles of one row of the tables.
void rotate_row(const Rotary& rotary, std::int64_t position, float* row);

// A row of elements of a floating dtype as floats, and back.
void load_row(DType dtype, const std::byte* row, std::int64_t count, float* floats);
void store_row(DType dtype, const float* floats, std::int64_t count, std::byte* row);

}  // namespace flashmha::cpu
