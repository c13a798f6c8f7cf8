// A few queries attend to keys and values where they lie: every element of the cache is read from
// memory once, widened in registers, and used for all queries of the group. Compiled once for each
// tier.
//
// Cost of a key: (head_dim + head_dim_v) * element size bytes, the bound for up to about eight
// queries; 2 (head_dim + head_dim_v) FLOPs and one exponential a query.

#include "cpu/query_tile.h"

namespace flashmha::cpu::FLASHMHA_ISA {
namespace {

// The rows of keys j, j + step, j + 2 step, ... of one head, step = count / kLanes: the block is
// read as kLanes streams, each in the order of its addresses, which the processor's prefetching
// follows. Neighbouring rows side by side, two or more in a page, it takes for disorder: half the
// bandwidth.
template <class T>
struct SomeRows {
  const T* of[kLanes];
  int64_t count;  // real ones; the last key stands in for those beyond

  SomeRows(const void* const* rows, int64_t head_bytes, int64_t head, int64_t j, int64_t num_keys) {
    const int64_t step = blocks_of(num_keys, kLanes);
    for (int i = 0; i < kLanes; ++i) {
      const auto* row = static_cast<const char*>(rows[smaller(j + i * step, num_keys - 1)]);
      of[i] = reinterpret_cast<const T*>(row + head * head_bytes);
    }
    count = blocks_of(num_keys - j, step);
  }
};

// Register tile of S = Q K^T in place: Rows queries x Keys keys, one accumulator a pair, lanes
// along head_dim. The accumulators are as many as a vector has lanes, so one transposition sums
// them all.
template <class T, int Rows>
void score_tile(const float* q, int64_t q_stride, const T* const* keys, int64_t head_dim,
                float* scores, int64_t score_stride, int64_t step) {
  constexpr int kKeys = kLanes / Rows;
  Vec acc[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    acc[i] = Vec{};
  int64_t d = 0;
  for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      const Pair key = load_pair(keys[j] + d);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const Pair query = load_pair(q + r * q_stride + d);
        Vec& sum = acc[r * kKeys + j];
        sum = fma(key.second, query.second, fma(key.first, query.first, sum));
      }
    }
  }
  for (; d < head_dim; d += kLanes) {
    const int some = static_cast<int>(smaller(kLanes, head_dim - d));
    for (int j = 0; j < kKeys; ++j) {
      const Vec key = load_n(keys[j] + d, some);
      for (int r = 0; r < Rows; ++r)
        acc[r * kKeys + j] = fma(key, load(q + r * q_stride + d), acc[r * kKeys + j]);
    }
  }
  const Vec total = sum_each(acc);
  alignas(sizeof(Vec)) float lanes[kLanes];
  store(lanes, total);
  for (int r = 0; r < Rows; ++r) {
    for (int j = 0; j < kKeys; ++j)
      scores[r * score_stride + j * step] = lanes[r * kKeys + j];
  }
}

// S = Q K^T of Rows queries against kLanes keys; their scores lie `step` apart.
template <class T, int Rows>
void score_rows(const QueryTile& tile, int64_t r, const SomeRows<T>& keys, int64_t j,
                int64_t step) {
  constexpr int kKeys = kLanes / Rows;
  float* scores = tile.scores + r * tile.score_stride + j;
  for (int i = 0; i < kLanes; i += kKeys) {
    score_tile<T, Rows>(tile.q + r * tile.q_stride, tile.q_stride, keys.of + i, tile.head_dim,
                        scores + i * step, tile.score_stride, step);
  }
}

template <class T>
void score_some(const QueryTile& tile, const SomeRows<T>& keys, int64_t j, int64_t step) {
  int64_t r = 0;
  for (; r + 4 <= tile.num_rows; r += 4)
    score_rows<T, 4>(tile, r, keys, j, step);
  for (; r + 2 <= tile.num_rows; r += 2)
    score_rows<T, 2>(tile, r, keys, j, step);
  if (r < tile.num_rows) score_rows<T, 1>(tile, r, keys, j, step);
}

// out += P V for Rows queries and Pairs pairs of vectors of columns, in registers over all keys.
template <class T, int Rows, int Pairs>
void add_values_tile(const float* weights, int64_t weight_stride, int64_t step,
                     const T* const* values, int64_t count, int64_t column, float* out,
                     int64_t out_stride) {
  Pair acc[Rows][Pairs];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Pairs; ++v)
      acc[r][v] = load_pair(out + r * out_stride + column + v * 2 * kLanes);
  }
  for (int64_t k = 0; k < count; ++k) {
    Pair value[Pairs];
#pragma GCC unroll 8
    for (int v = 0; v < Pairs; ++v)
      value[v] = load_pair(values[k] + column + v * 2 * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec weight = set1(weights[r * weight_stride + k * step]);
#pragma GCC unroll 8
      for (int v = 0; v < Pairs; ++v) {
        acc[r][v].first = fma(weight, value[v].first, acc[r][v].first);
        acc[r][v].second = fma(weight, value[v].second, acc[r][v].second);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Pairs; ++v) {
      store_pair(out + r * out_stride + column + v * 2 * kLanes, acc[r][v]);
    }
  }
}

// The same for the last columns, at most a vector of them.
template <class T, int Rows>
void add_last_values(const float* weights, int64_t weight_stride, int64_t step,
                     const T* const* values, int64_t count, int64_t column, int some, float* out,
                     int64_t out_stride) {
  Vec acc[Rows];
  for (int r = 0; r < Rows; ++r)
    acc[r] = load(out + r * out_stride + column);
  for (int64_t k = 0; k < count; ++k) {
    const Vec value = load_n(values[k] + column, some);
    for (int r = 0; r < Rows; ++r)
      acc[r] = fma(set1(weights[r * weight_stride + k * step]), value, acc[r]);
  }
  for (int r = 0; r < Rows; ++r)
    store(out + r * out_stride + column, acc[r]);
}

// Columns from `column` on, in strips of Pairs pairs of vectors, then of half as many, then one
// vector at a time.
template <class T, int Rows, int Pairs>
void add_columns(const float* weights, int64_t weight_stride, int64_t step,
                 const SomeRows<T>& values, int64_t column, int64_t num_columns, float* out,
                 int64_t out_stride) {
  for (; column + Pairs * 2 * kLanes <= num_columns; column += Pairs * 2 * kLanes) {
    add_values_tile<T, Rows, Pairs>(weights, weight_stride, step, values.of, values.count, column,
                                    out, out_stride);
  }
  if constexpr (Pairs > 1) {
    return add_columns<T, Rows, Pairs / 2>(weights, weight_stride, step, values, column,
                                           num_columns, out, out_stride);
  }
  for (; column < num_columns; column += kLanes) {
    const int some = static_cast<int>(smaller(kLanes, num_columns - column));
    add_last_values<T, Rows>(weights, weight_stride, step, values.of, values.count, column, some,
                             out, out_stride);
  }
}

template <class T, int Rows>
void add_values(const QueryTile& tile, int64_t first, const SomeRows<T>& values, int64_t j,
                int64_t step) {
  add_columns<T, Rows, 4 / Rows>(tile.scores + first * tile.score_stride + j, tile.score_stride,
                                 step, values, 0, tile.head_dim_v,
                                 tile.out + first * tile.out_stride, tile.out_stride);
}

// The slow, exact form for rows with hidden pairs: a hidden pair's weight is marked -0.
template <class T>
void add_visible_values(const QueryTile& tile, const SomeRows<T>& values, int64_t j, int64_t step) {
  for (int64_t r = 0; r < tile.num_rows; ++r) {
    for (int64_t k = 0; k < values.count; ++k) {
      const float weight = tile.scores[r * tile.score_stride + j + k * step];
      if (weight == 0.0f && __builtin_signbit(weight)) continue;
      float* out = tile.out + r * tile.out_stride;
      int64_t d = 0;
      for (; d + 2 * kLanes <= tile.head_dim_v; d += 2 * kLanes) {
        const Pair value = load_pair(values.of[k] + d), sum = load_pair(out + d);
        store_pair(out + d, {fma(set1(weight), value.first, sum.first),
                             fma(set1(weight), value.second, sum.second)});
      }
      for (; d < tile.head_dim_v; d += kLanes) {
        const int some = static_cast<int>(smaller(kLanes, tile.head_dim_v - d));
        store(out + d, fma(set1(weight), load_n(values.of[k] + d, some), load(out + d)));
      }
    }
  }
}

template <class T>
bool all_finite(const T* const* rows, int64_t count, int64_t num_columns) {
  Vec zero = {};
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t d = 0; d < num_columns; d += kLanes) {
      zero += load_n(rows[k] + d, static_cast<int>(smaller(kLanes, num_columns - d))) * 0.0f;
    }
  }
  return sum(zero) == 0.0f;
}

// out += P V of one head for some keys.
template <class T>
void add_some(const QueryTile& tile, const SomeRows<T>& values, int64_t j, int64_t step) {
  int64_t r = 0;
  for (; r + 4 <= tile.num_rows; r += 4)
    add_values<T, 4>(tile, r, values, j, step);
  for (; r + 2 <= tile.num_rows; r += 2)
    add_values<T, 2>(tile, r, values, j, step);
  if (r < tile.num_rows) add_values<T, 1>(tile, r, values, j, step);
}

// Scores to weights; then, if hidden pairs meet something infinite or NaN, the whole of P V.
// Returns whether P V is still to be done.
template <class T>
bool weigh_head(const QueryTile& tile, const KeyRows& rows, int64_t head) {
  const Reach reach = reach_of(tile.visible, tile.num_rows);
  const bool edge = reach.all.begin > rows.first || reach.all.end < rows.first + rows.count;
  const ScoreTile scores = {
      tile.scores, tile.score_stride, tile.num_rows, round_up(rows.count, kLanes),
      rows.first,  rows.count,        tile.visible};
  weigh(tile, 0, scores, edge);
  if (!edge && !(tile.options && tile.options->mask.data)) return true;
  const int64_t step = blocks_of(rows.count, kLanes);
  bool finite = true;
  for (int64_t j = 0; j < step; ++j) {
    const SomeRows<T> values(rows.values, rows.value_head_bytes, head, j, rows.count);
    finite &= all_finite(values.of, kLanes, tile.head_dim_v);
  }
  if (finite) return true;
  mark_hidden(tile, 0, scores);
  for (int64_t j = 0; j < step; ++j) {
    const SomeRows<T> values(rows.values, rows.value_head_bytes, head, j, rows.count);
    add_visible_values(tile, values, j, step);
  }
  return false;
}

// kLanes keys at a time for all heads: where the rows of the heads are neighbours, memory is read
// in the order of its addresses.
template <class T>
void attend_typed(const QueryTile* tiles, int64_t num_heads, const KeyRows& rows) {
  const int64_t step = blocks_of(rows.count, kLanes);
  for (int64_t j = 0; j < step; ++j) {
    for (int64_t h = 0; h < num_heads; ++h)
      score_some(tiles[h], SomeRows<T>(rows.keys, rows.key_head_bytes, h, j, rows.count), j, step);
  }
  bool pending[kMaxHeadsAtOnce];
  for (int64_t h = 0; h < num_heads; ++h)
    pending[h] = weigh_head<T>(tiles[h], rows, h);
  for (int64_t j = 0; j < step; ++j) {
    for (int64_t h = 0; h < num_heads; ++h) {
      if (!pending[h]) continue;
      add_some(tiles[h], SomeRows<T>(rows.values, rows.value_head_bytes, h, j, rows.count), j,
               step);
    }
  }
}

void attend_rows(const QueryTile* tiles, int64_t num_heads, const KeyRows& rows) {
  visit_storage(rows.storage, [&]<class T>(const T*) { attend_typed<T>(tiles, num_heads, rows); });
}

// Whole pairs of vectors of all rows change their order; the columns beyond keep theirs.
template <class Reorder>
void reorder_rows(float* rows, int64_t num_rows, int64_t stride, int64_t num_columns,
                  Reorder reorder) {
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t d = 0; d + 2 * kLanes <= num_columns; d += 2 * kLanes)
      store_pair(rows + r * stride + d, reorder(load_pair(rows + r * stride + d)));
  }
}

// out is all zeros here: it has every order.
void begin_rows(const QueryTile& tile, Storage storage) {
  visit_storage(storage, [&]<class T>(const T*) {
    reorder_rows(tile.q, tile.num_rows, tile.q_stride, tile.head_dim, to_pair_order<T>);
  });
}

void end_rows(const QueryTile& tile, Storage storage) {
  visit_storage(storage, [&]<class T>(const T*) {
    reorder_rows(tile.out, tile.num_rows, tile.out_stride, tile.head_dim_v, from_pair_order<T>);
  });
}

}  // namespace

extern const DecodeKernels decode_kernels;
constexpr DecodeKernels decode_kernels = {begin_rows, end_rows, attend_rows};

}  // namespace flashmha::cpu::FLASHMHA_ISA
