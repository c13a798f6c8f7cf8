#pragma once

// What the two halves of backward share: backward.cpp (dq, dk, dv) and backward_bias.cpp (the
// gradients of bias and sinks).

#include <algorithm>

#include "cpu/attention_host.h"
#include "cpu/isa.h"

namespace flashmha::cpu {

constexpr std::int64_t kGradientBlockM = 96;  // queries

// Blocks of keys: a multiple of the tiles' height and of their width.
inline std::int64_t gradient_block_n(const Problem& problem) {
  return std::max(problem.sizes.head_dim, problem.sizes.head_dim_v) <= 128 ? 192 : 96;
}

// What one worker needs.
struct GradientScratch {
  GradientKeys keys{};
  GradientTile tile{};
  Span* visible;
  ScoreOptions options{};
  DropoutRows* dropout;
  const void** key_pointers;
  const void** value_pointers;

  GradientScratch(Arena& arena, const Problem& problem);
};

// Rows of all sequences together, and the number of a sequence's query 0 among them.
inline std::int64_t total_rows(const Problem& problem) {
  return problem.layout.ragged ? problem.sizes.total_q
                               : problem.sizes.batch * problem.sizes.seqlen_q;
}
inline std::int64_t first_row(const Problem& problem, const Sequence& sequence) {
  return problem.layout.ragged ? sequence.first_row_q : sequence.batch * problem.sizes.seqlen_q;
}

// One call's blocks of keys and of queries, by position.
class GradientBlocks {
 public:
  // delta: [num_heads_q, total_rows], dout . out - dlse of every row.
  GradientBlocks(const Problem& the_problem, const AttentionCall& the_call, float* the_delta)
      : problem(the_problem),
        call(the_call),
        kernels(*cpu::kernels().backward),
        block_n(gradient_block_n(the_problem)),
        delta_(the_delta) {}

  Sequence sequence(std::int64_t batch) const { return find_sequence(problem, call, batch); }
  std::int64_t rows_in(const Sequence& sequence, std::int64_t row) const {
    return std::min(kGradientBlockM, sequence.seqlen_q - row);
  }
  // Number of a row among all rows of all heads.
  std::int64_t at_row(const Sequence& sequence, std::int64_t head, std::int64_t row) const {
    return head * total_rows(problem) + first_row(problem, sequence) + row;
  }
  float* delta(const Sequence& sequence, std::int64_t head, std::int64_t row) const {
    return delta_ + at_row(sequence, head, row);
  }
  // Blocks of keys that the block of queries at `row` sees some of.
  KeyRange key_blocks(const Sequence& sequence, std::int64_t row) const;

  void load_keys(const Sequence& sequence, std::int64_t head_kv, std::int64_t block,
                 GradientScratch& scratch) const;
  void load_queries(const Sequence& sequence, std::int64_t head, std::int64_t row,
                    GradientScratch& scratch) const;

  const Problem& problem;
  const AttentionCall& call;
  const BackwardKernels& kernels;
  const std::int64_t block_n;

 private:
  float* delta_;
};

// backward_bias.cpp. Both need the deltas.
void store_dsinks(const GradientBlocks& blocks, const Slices& slices);
void store_dbias(const GradientBlocks& blocks, const Slices& slices);

}  // namespace flashmha::cpu
