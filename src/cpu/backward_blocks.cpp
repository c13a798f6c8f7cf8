#include "cpu/backward_blocks.h"

#include <limits>

namespace flashmha::cpu {

GradientScratch::GradientScratch(Arena& arena, const Problem& problem) {
  const std::int64_t block_n = gradient_block_n(problem);
  const std::int64_t head_dim = problem.sizes.head_dim;
  const std::int64_t head_dim_v = problem.sizes.head_dim_v;
  const std::int64_t padded = pad_to(block_n, kernels().tile_columns);
  keys.key_stride = row_stride(head_dim);
  keys.value_stride = row_stride(head_dim_v);
  keys.keys_transposed = arena.take<float>(padded * head_dim);
  keys.values_transposed = arena.take<float>(padded * head_dim_v);
  keys.keys = arena.take<float>(block_n * keys.key_stride);
  keys.dk = arena.take<float>(block_n * keys.key_stride);
  keys.dv = arena.take<float>(block_n * keys.value_stride);
  tile.head_dim = head_dim;
  tile.head_dim_v = head_dim_v;
  tile.q_stride = row_stride(head_dim);
  tile.dout_stride = row_stride(head_dim_v);
  tile.score_stride = row_stride(block_n);
  tile.dropout_scale = dropout_scale(problem);
  tile.q = arena.take<float>(kGradientBlockM * tile.q_stride);
  tile.dout = arena.take<float>(kGradientBlockM * tile.dout_stride);
  tile.p = arena.take<float>(kGradientBlockM * tile.score_stride);
  tile.ds = arena.take<float>(kGradientBlockM * tile.score_stride);
  const bool softcap = problem.scores.softcap > 0.0f;
  tile.slope = arena.take<float>(softcap ? kGradientBlockM * tile.score_stride : 0);
  if (!softcap) tile.slope = nullptr;
  visible = arena.take<Span>(kGradientBlockM);
  dropout = arena.take<DropoutRows>(1);
  key_pointers = arena.take<const void*>(block_n);
  value_pointers = arena.take<const void*>(block_n);
  tile.visible = visible;
}

KeyRange GradientBlocks::key_blocks(const Sequence& sequence, std::int64_t row) const {
  const KeyRange keys = SequenceBand(problem.band, sequence.seqlen_q, sequence.seqlen_k)
                            .keys_of_any(row, row + rows_in(sequence, row) - 1);
  if (keys.empty()) return {};
  return {keys.begin / block_n, ceil_div(keys.end, block_n)};
}

void GradientBlocks::load_keys(const Sequence& sequence, std::int64_t head_kv, std::int64_t block,
                               GradientScratch& scratch) const {
  const std::int64_t first = block * block_n;
  const KeyRange keys{first, std::min(first + block_n, sequence.seqlen_k)};
  scratch.keys.first = first;
  scratch.keys.count = keys.end - first;
  fill_pointers(problem, call, call.k, sequence, head_kv, keys, scratch.key_pointers);
  fill_pointers(problem, call, call.v, sequence, head_kv, keys, scratch.value_pointers);
  kernels.load_keys(scratch.keys,
                    {first, scratch.keys.count, scratch.key_pointers, scratch.value_pointers,
                     storage_of(problem.dtype)},
                    problem.sizes.head_dim, problem.sizes.head_dim_v);
}

void GradientBlocks::load_queries(const Sequence& sequence, std::int64_t head, std::int64_t row,
                                  GradientScratch& scratch) const {
  GradientTile& tile = scratch.tile;
  tile.num_rows = rows_in(sequence, row);
  tile.first_row = row;
  tile.lse = call.lse.as<float>() + lse_offset(call.lse, sequence, head) + row;
  tile.delta = delta(sequence, head, row);
  tile.options = nullptr;
  if (has_score_options(problem)) {
    scratch.options = score_options(problem, call, sequence, head, scratch.dropout);
    tile.options = &scratch.options;
  }
  fill_spans(SequenceBand(problem.band, sequence.seqlen_q, sequence.seqlen_k), row, tile.num_rows,
             scratch.visible);
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    if (tile.lse[r] == -std::numeric_limits<float>::infinity()) scratch.visible[r] = {0, 0};
  }
  const HeadRows q = query_rows(call.q, sequence, head);
  const HeadRows dout = query_rows(call.dout, sequence, head);
  kernels.load_queries(tile, storage_of(problem.dtype), q.row(row), q.row_stride, dout.row(row),
                       dout.row_stride, problem.scores.softmax_scale);
}

}  // namespace flashmha::cpu
