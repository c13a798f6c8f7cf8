// A few queries attend to keys and values where they lie: every element of the cache is read from
// memory once, widened in registers, and used for all queries of the group. Compiled once for each
// tier.
//
// Cost of a key: (head_dim + head_dim_v) * element size bytes, the bound for up to about eight
// queries; 2 (head_dim + head_dim_v) FLOPs and one exponential a query.

#include "cpu/query_tile.h"

namespace flashmha::cpu::FLASHMHA_ISA {
namespace {

// Register tile of S = Q K^T in place: Rows queries x Keys keys, one accumulator a pair, lanes
// along head_dim. The accumulators are as many as a vector has lanes, so one transposition sums
// them all.
template <class T, int Rows>
void score_tile(const float* q, int64_t q_stride, const T* const* keys, int64_t head_dim,
                float* scores, int64_t score_stride) {
  constexpr int kKeys = kLanes / Rows;
  Vec acc[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      const Vec key = load(keys[j] + d);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r)
        acc[r * kKeys + j] = fma(key, load(q + r * q_stride + d), acc[r * kKeys + j]);
    }
  }
  if (d < head_dim) {
    for (int j = 0; j < kKeys; ++j) {
      const Vec key = load_n(keys[j] + d, static_cast<int>(head_dim - d));
      for (int r = 0; r < Rows; ++r)
        acc[r * kKeys + j] = fma(key, load(q + r * q_stride + d), acc[r * kKeys + j]);
    }
  }
  transpose(acc);
  Vec total = acc[0];
  for (int i = 1; i < kLanes; ++i)
    total += acc[i];
  alignas(sizeof(Vec)) float lanes[kLanes];
  store(lanes, total);
  for (int r = 0; r < Rows; ++r) {
    for (int j = 0; j < kKeys; ++j)
      scores[r * score_stride + j] = lanes[r * kKeys + j];
  }
}

template <class T, int Rows>
void score_rows(const QueryTile& tile, int64_t first, const T* const* keys, int64_t count) {
  constexpr int kKeys = kLanes / Rows;
  const float* q = tile.q + first * tile.q_stride;
  float* scores = tile.scores + first * tile.score_stride;
  for (int64_t j = 0; j < count; j += kKeys) {
    if (j + kKeys <= count) {
      score_tile<T, Rows>(q, tile.q_stride, keys + j, tile.head_dim, scores + j, tile.score_stride);
    } else {  // the last few keys, with the last one standing in for those beyond
      const T* some[kKeys];
      for (int i = 0; i < kKeys; ++i)
        some[i] = keys[smaller(j + i, count - 1)];
      score_tile<T, Rows>(q, tile.q_stride, some, tile.head_dim, scores + j, tile.score_stride);
    }
  }
}

// out += P V for Rows queries and Vectors vectors of columns, in registers over all keys.
template <class T, int Rows, int Vectors>
void add_values_tile(const float* weights, int64_t weight_stride, const T* const* values,
                     int64_t count, int64_t column, int last, float* out, int64_t out_stride) {
  Vec acc[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v)
      acc[r][v] = load(out + r * out_stride + column + v * kLanes);
  }
  for (int64_t k = 0; k < count; ++k) {
    const T* row = values[k] + column;
    Vec value[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      const bool whole = Vectors > 1 || last == kLanes;
      value[v] = whole ? load(row + v * kLanes) : load_n(row, last);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec weight = set1(weights[r * weight_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v)
        acc[r][v] = fma(weight, value[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v)
      store(out + r * out_stride + column + v * kLanes, acc[r][v]);
  }
}

template <class T, int Rows>
void add_values(const QueryTile& tile, int64_t first, const T* const* values, int64_t count) {
  constexpr int kWide = Rows == 1 ? 8 : 4 / Rows * 2;
  const float* weights = tile.scores + first * tile.score_stride;
  float* out = tile.out + first * tile.out_stride;
  int64_t column = 0;
  for (; column + kWide * kLanes <= tile.head_dim_v; column += kWide * kLanes) {
    add_values_tile<T, Rows, kWide>(weights, tile.score_stride, values, count, column, kLanes, out,
                                    tile.out_stride);
  }
  for (; column < tile.head_dim_v; column += kLanes) {
    const int last = static_cast<int>(smaller(kLanes, tile.head_dim_v - column));
    add_values_tile<T, Rows, 1>(weights, tile.score_stride, values, count, column, last, out,
                                tile.out_stride);
  }
}

// The slow, exact form for rows with hidden pairs: a hidden pair's weight is marked -0.
template <class T>
void add_visible_values(const QueryTile& tile, const T* const* values, int64_t count) {
  for (int64_t r = 0; r < tile.num_rows; ++r) {
    for (int64_t k = 0; k < count; ++k) {
      const float weight = tile.scores[r * tile.score_stride + k];
      if (weight == 0.0f && __builtin_signbit(weight)) continue;
      for (int64_t d = 0; d < tile.head_dim_v; ++d)
        tile.out[r * tile.out_stride + d] += weight * load_one(values[k] + d);
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

template <class T>
void attend_typed(const QueryTile& tile, const T* const* keys, const T* const* values,
                  int64_t first_key, int64_t count) {
  constexpr int kRows = 2;
  const int64_t pairs = tile.num_rows / kRows * kRows;
  for (int64_t r = 0; r < pairs; r += kRows)
    score_rows<T, kRows>(tile, r, keys, count);
  if (pairs < tile.num_rows) score_rows<T, 1>(tile, pairs, keys, count);

  const Reach reach = reach_of(tile.visible, tile.num_rows);
  const bool edge = reach.all.begin > first_key || reach.all.end < first_key + count;
  const ScoreTile scores = {
      tile.scores, tile.score_stride, tile.num_rows, round_up(count, kLanes), first_key,
      count,       tile.visible};
  const bool hidden = weigh(tile, 0, scores, edge);
  const bool partly = edge || (tile.options && tile.options->mask.data);
  if (hidden && partly && !all_finite(values, count, tile.head_dim_v)) {
    mark_hidden(tile, 0, scores);
    return add_visible_values(tile, values, count);
  }
  int64_t r = 0;
  for (; r + 4 <= tile.num_rows; r += 4)
    add_values<T, 4>(tile, r, values, count);
  for (; r + 2 <= tile.num_rows; r += 2)
    add_values<T, 2>(tile, r, values, count);
  if (r < tile.num_rows) add_values<T, 1>(tile, r, values, count);
}

void attend_rows(const QueryTile& tile, const KeyRows& rows) {
  visit_storage(rows.storage, [&]<class T>(const T*) {
    attend_typed(tile, reinterpret_cast<const T* const*>(rows.keys),
                 reinterpret_cast<const T* const*>(rows.values), rows.first, rows.count);
  });
}

}  // namespace

extern const DecodeKernels decode_kernels;
constexpr DecodeKernels decode_kernels = {attend_rows};

}  // namespace flashmha::cpu::FLASHMHA_ISA
