// Gradients of the inputs that only change scores: attention sinks and an additive bias.
//
// A bias may be broadcast along any dimension, and then sums over what backward.cpp does in
// parallel. So it has a pass of its own: one task owns a block of its elements and walks over all
// tiles of scores that read it, in a fixed order, at the price of computing p and ds again (two
// products).

#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "cpu/backward_blocks.h"

namespace flashmha::cpu {
namespace {

// A dimension of the bias: the task's block of its elements, and what stands for them.
struct Axis {
  bool broadcast;
  std::int64_t block;  // elements of a task; unused if broadcast

  std::int64_t num_tasks(std::int64_t size) const { return broadcast ? 1 : ceil_div(size, block); }
  // Positions below `limit` that task `index` sums over.
  KeyRange readers(std::int64_t index, std::int64_t limit) const {
    if (broadcast) return {0, limit};
    return {std::min(index * block, limit), std::min((index + 1) * block, limit)};
  }
};

// out[i, j] += ds of the pairs of one head. out is the matrix of the bias that the head reads.
void add_bias_gradient(const GradientBlocks& blocks, const Sequence& sequence, std::int64_t head,
                       KeyRange rows, KeyRange columns, float* out, GradientScratch& scratch) {
  const std::int64_t row_step = blocks.call.dbias.size(2) == 1 ? 0 : blocks.call.dbias.stride(2);
  const std::int64_t column_step = blocks.call.dbias.size(3) == 1 ? 0 : 1;
  for (std::int64_t key = columns.begin; key < columns.end; key += blocks.block_n) {
    const std::int64_t block = key / blocks.block_n;
    blocks.load_keys(sequence, head / blocks.problem.group_size(), block, scratch);
    for (std::int64_t row = rows.begin; row < rows.end; row += kGradientBlockM) {
      const KeyRange seen = blocks.key_blocks(sequence, row);
      if (block < seen.begin || block >= seen.end) continue;
      blocks.load_queries(sequence, head, row, scratch);
      blocks.kernels.differentiate(scratch.tile, scratch.keys);
      blocks.kernels.add_bias_gradient(scratch.tile, scratch.keys,
                                       out + row * row_step + key * column_step, row_step,
                                       column_step);
    }
  }
}

// dsink = - sum over rows of exp(sink - lse) delta
void store_dsink(const GradientBlocks& blocks, std::int64_t head) {
  const auto sink = static_cast<double>(sink_of(blocks.call, head));
  double sum = 0.0;
  for (std::int64_t batch = 0; sink != -INFINITY && batch < blocks.problem.sizes.batch; ++batch) {
    const Sequence sequence = blocks.sequence(batch);
    const float* lse = blocks.call.lse.as<float>() + lse_offset(blocks.call.lse, sequence, head);
    const float* delta = blocks.delta(sequence, head, 0);
    for (std::int64_t row = 0; row < sequence.seqlen_q; ++row) {
      sum -= std::exp(sink - static_cast<double>(lse[row])) * static_cast<double>(delta[row]);
    }
  }
  blocks.call.dsinks.as<float>()[head * blocks.call.dsinks.stride(0)] = static_cast<float>(sum);
}

}  // namespace

void store_dbias(const GradientBlocks& blocks, const Slices& slices) {
  const TensorView& dbias = blocks.call.dbias;
  const Axis batches{dbias.size(0) == 1, 1};
  const Axis heads{dbias.size(1) == 1, 1};
  const Axis rows{dbias.size(2) == 1, kGradientBlockM};
  const Axis columns{dbias.size(3) == 1, blocks.block_n};
  const std::int64_t num_columns = columns.num_tasks(dbias.size(3));
  const std::int64_t num_rows = rows.num_tasks(dbias.size(2));
  const std::int64_t num_heads = heads.num_tasks(dbias.size(1));
  const std::int64_t num_tasks =
      batches.num_tasks(dbias.size(0)) * num_heads * num_rows * num_columns;
  std::fill_n(dbias.as<float>(), dbias.numel(), 0.0f);
  parallel_for(num_tasks, slices.num_workers(), [&](std::int64_t task, int worker) {
    Arena arena(slices.worker(worker));
    GradientScratch scratch(arena, blocks.problem);
    scratch.tile.slope = nullptr;  // the bias is added after the softcap
    const std::int64_t column = task % num_columns;
    const std::int64_t row = task / num_columns % num_rows;
    const std::int64_t head = task / num_columns / num_rows % num_heads;
    const std::int64_t batch = task / num_columns / num_rows / num_heads;
    const KeyRange read_batches = batches.readers(batch, blocks.problem.sizes.batch);
    const KeyRange read_heads = heads.readers(head, blocks.problem.sizes.num_heads_q);
    float* out = dbias.select(0, batch).select(0, head).as<float>();
    for (std::int64_t b = read_batches.begin; b < read_batches.end; ++b) {
      const Sequence sequence = blocks.sequence(b);
      for (std::int64_t h = read_heads.begin; h < read_heads.end; ++h) {
        add_bias_gradient(blocks, sequence, h, rows.readers(row, sequence.seqlen_q),
                          columns.readers(column, sequence.seqlen_k), out, scratch);
      }
    }
  });
}

void store_dsinks(const GradientBlocks& blocks, const Slices& slices) {
  parallel_for(blocks.problem.sizes.num_heads_q, slices.num_workers(),
               [&](std::int64_t head, int) { store_dsink(blocks, head); });
}

}  // namespace flashmha::cpu
