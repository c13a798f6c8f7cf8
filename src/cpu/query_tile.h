#pragma once

// The online softmax of a tile of queries (Milakov and Gimelshein 2018): scores to weights, with
// the options, and the state that makes blocks of keys add up. Shared by forward_kernels.cpp and
// decode_kernels.cpp; compiled for a tier.

#include "cpu/rows.h"

namespace flashmha::cpu::FLASHMHA_ISA {

// exp(from - to) for tops that never fall; 1 where both are -inf.
inline float rescale_factor(float from, float to) {
  return from == to ? 1.0f : exp2(set1((from - to) * kLog2E))[0];
}

// The highest of a row's scores. Four chains, because one waits for itself: a maximum takes as long
// as four scores do.
inline float highest_score(const float* scores, int64_t num_columns) {
  Vec seen[4] = {set1(kMinusInfinity), set1(kMinusInfinity), set1(kMinusInfinity),
                 set1(kMinusInfinity)};
  int64_t c = 0;
  for (; c + 4 * kLanes <= num_columns; c += 4 * kLanes) {
    for (int i = 0; i < 4; ++i)
      seen[i] = max(load(scores + c + i * kLanes), seen[i]);
  }
  for (; c < num_columns; c += kLanes)
    seen[0] = max(load(scores + c), seen[0]);
  return highest(max(max(seen[0], seen[1]), max(seen[2], seen[3])));
}

// Replaces the scores of one row by exp(score - top) and adds them to the row's sum.
inline void softmax_row(const QueryTile& tile, int64_t r, float* scores, int64_t num_columns) {
  const float before = tile.top[r];
  const float here = highest_score(scores, num_columns);
  const float top = here > before ? here : before;
  if (top != before) {
    tile.top[r] = top;
    if (before != kMinusInfinity) {  // else there is nothing yet
      const float factor = rescale_factor(before, top);
      tile.sum[r] *= factor;
      scale_row(tile.out + r * tile.out_stride, round_up(tile.head_dim_v, kLanes), factor);
    }
  }
  // A row that has seen nothing yet keeps weights of 0 instead of exp(-inf + inf).
  const Vec offset = set1(top == kMinusInfinity ? 0.0f : top * kLog2E);
  Vec total[2] = {};
  int64_t c = 0;
  for (; c + 2 * kLanes <= num_columns; c += 2 * kLanes) {
    for (int i = 0; i < 2; ++i) {
      const Vec weight = exp2_below_128(load(scores + c + i * kLanes) * kLog2E - offset);
      total[i] += weight;
      store(scores + c + i * kLanes, weight);
    }
  }
  for (; c < num_columns; c += kLanes) {
    const Vec weight = exp2_below_128(load(scores + c) * kLog2E - offset);
    total[0] += weight;
    store(scores + c, weight);
  }
  tile.sum[r] += sum(total[0] + total[1]);
}

inline const ScoreOptions* options_of(const QueryTile& tile, int64_t row) {
  return tile.options ? tile.options + row / tile.rows_per_head : nullptr;
}

inline int64_t position_of(const QueryTile& tile, int64_t row) {
  return tile.first_row + row % tile.rows_per_head;
}

// Score options of rows [first, first + scores.num_rows) of the tile; true if a mask hides pairs.
inline bool transform(const QueryTile& tile, int64_t first, const ScoreTile& scores) {
  if (!tile.options) return false;
  for (int64_t r = 0; r < scores.num_rows; ++r) {
    const ScoreOptions& options = *options_of(tile, first + r);
    const int64_t query = position_of(tile, first + r);
    transform_row(scores, r, query, options, nullptr);
    if (options.mask.data) mask_row(scores, r, query, options.mask, kMinusInfinity);
  }
  return tile.options->mask.data != nullptr;
}

inline void drop(const QueryTile& tile, int64_t first, const ScoreTile& scores) {
  if (!tile.options || !tile.options->keep_columns) return;
  float keep[kMaxKeyBlock];
  for (int64_t r = 0; r < scores.num_rows; ++r) {
    const ScoreOptions& options = *options_of(tile, first + r);
    options.keep_columns(options.dropout, position_of(tile, first + r), scores.first_key,
                         scores.num_columns, keep);
    drop_row(scores, r, keep);
  }
}

// Marks the weights of hidden pairs for multiply_visible.
inline void mark_hidden(const QueryTile& tile, int64_t first, const ScoreTile& scores) {
  hide(scores, -0.0f);
  for (int64_t r = 0; tile.options && r < scores.num_rows; ++r) {
    const PairMap& mask = options_of(tile, first + r)->mask;
    if (mask.data) mask_row(scores, r, position_of(tile, first + r), mask, -0.0f);
  }
}

// Scores to weights. Returns whether the tile has hidden pairs.
inline bool weigh(const QueryTile& tile, int64_t first, const ScoreTile& scores, bool edge) {
  bool hidden = transform(tile, first, scores);
  if (edge || scores.num_keys < scores.num_columns) {
    hide(scores, kMinusInfinity);
    hidden = true;
  }
  for (int64_t r = 0; r < scores.num_rows; ++r)
    softmax_row(tile, first + r, scores.data + r * scores.stride, scores.num_columns);
  drop(tile, first, scores);
  return hidden;
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
