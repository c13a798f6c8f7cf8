// A few queries attend to keys and values where they lie: every element of the cache is read from
// memory once, widened in registers, and used for all queries of the group. Compiled once for each
// tier.
//
// Cost of a key: (head_dim + head_dim_v) * element size bytes, the bound for up to about eight
// queries; 2 (head_dim + head_dim_v) FLOPs and one exponential a query.

#include "cpu/query_tile.h"

namespace flashmha::cpu::FLASHMHA_ISA {
namespace {

template <class T>
const T* row_of(const void* row, int64_t bytes) {
  return reinterpret_cast<const T*>(static_cast<const char*>(row) + bytes);
}

// A block of keys is read as a few streams side by side, each in the order of its addresses, key by
// key with all heads of it: what the processor's prefetching follows best. With many streams, or
// with two rows of a page at once, it gives up half the bandwidth (docs/performance/cpu.md).
//
// Key j of each of Count streams; a stream has `step` = count / Count keys.
template <class T, int Count>
struct StreamRows {
  const T* of[Count];
  int64_t count;  // real ones; the last key stands in for those beyond

  explicit StreamRows(const T* only) : of{only}, count(1) {}
  StreamRows(const void* const* rows, int64_t j, int64_t step, int64_t num_keys)
      : count(blocks_of(num_keys - j, step)) {
    for (int i = 0; i < Count; ++i)
      of[i] = static_cast<const T*>(rows[smaller(j + i * step, num_keys - 1)]);
  }
  // The same keys `bytes` further on: of another head.
  StreamRows further(int64_t bytes) const {
    StreamRows moved = *this;
    for (const T*& row : moved.of)
      row = row_of<T>(row, bytes);
    return moved;
  }
};

// Calls visit.operator()<Rows>(first row) for all rows: four at a time, then two, then one.
template <class Visit>
void by_rows(int64_t num_rows, const Visit& visit) {
  int64_t r = 0;
  for (; r + 4 <= num_rows; r += 4)
    visit.template operator()<4>(r);
  for (; r + 2 <= num_rows; r += 2)
    visit.template operator()<2>(r);
  if (r < num_rows) visit.template operator()<1>(r);
}

constexpr int kKeyStreams = 2;

// Vectors whose sums are wanted: as many as a vector has lanes are summed by one transposition.
class PendingSums {
 public:
  void add(Vec vector, float* place) {
    vectors_[count_] = vector;
    places_[count_] = place;
    if (++count_ == kLanes) finish();
  }
  void finish() {
    float unused;
    for (; count_ < kLanes; ++count_) {
      vectors_[count_] = Vec{};
      places_[count_] = &unused;
    }
    const Vec sums = sum_each(vectors_);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      *places_[i] = sums[i];
    count_ = 0;
  }

 private:
  Vec vectors_[kLanes];
  float* places_[kLanes];
  int count_ = 0;
};

// Rows of a tile that are taken together, Rows of them from `first` on.
template <int Rows>
struct RowsOf {
  float* q;
  float* scores;
  float* out;

  RowsOf() = default;
  RowsOf(const QueryTile& tile, int64_t first)
      : q(tile.q + first * tile.q_stride),
        scores(tile.scores + first * tile.score_stride),
        out(tile.out + first * tile.out_stride) {}
};

// S = Q K^T of Rows queries and a key of each stream, in place, lanes along head_dim.
template <class T, int Rows>
void score_tile(const QueryTile& shape, const float* q, const StreamRows<T, kKeyStreams>& keys,
                float* scores, int64_t step, PendingSums& pending) {
  const int64_t head_dim = shape.head_dim, q_stride = shape.q_stride;
  Vec acc[Rows][kKeyStreams];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < kKeyStreams; ++i)
      acc[r][i] = Vec{};
  }
  int64_t d = 0;
  for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
    Pair key[kKeyStreams];
#pragma GCC unroll 2
    for (int i = 0; i < kKeyStreams; ++i)
      key[i] = load_pair(keys.of[i] + d);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const Pair query = load_pair(q + r * q_stride + d);
#pragma GCC unroll 2
      for (int i = 0; i < kKeyStreams; ++i)
        acc[r][i] = fma(key[i].second, query.second, fma(key[i].first, query.first, acc[r][i]));
    }
  }
  for (; d < head_dim; d += kLanes) {
    const int some = static_cast<int>(smaller(kLanes, head_dim - d));
#pragma GCC unroll 2
    for (int i = 0; i < kKeyStreams; ++i) {
      const Vec key = load_n(keys.of[i] + d, some);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r)
        acc[r][i] = fma(key, load(q + r * q_stride + d), acc[r][i]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < kKeyStreams; ++i)
      pending.add(acc[r][i], scores + r * shape.score_stride + i * step);
  }
}

// S = Q K^T of rows [first, first + Rows) of all heads.
template <class T, int Rows>
void score_all(const QueryTile* tiles, int64_t num_heads, const KeyRows& rows, int64_t first) {
  const int64_t step = blocks_of(rows.count, kKeyStreams);
  const QueryTile shape = tiles[0];
  RowsOf<Rows> of[kMaxHeadsAtOnce];
  for (int64_t h = 0; h < num_heads; ++h)
    of[h] = RowsOf<Rows>(tiles[h], first);
  PendingSums pending;
  for (int64_t j = 0; j < step; ++j) {
    StreamRows<T, kKeyStreams> keys(rows.keys, j, step, rows.count);
    for (int64_t h = 0; h < num_heads; ++h) {
      score_tile<T, Rows>(shape, of[h].q, keys, of[h].scores + j, step, pending);
      keys = keys.further(rows.key_head_bytes);
    }
  }
  pending.finish();
}

// out += P V for Rows queries, a key of each stream, and Pairs pairs of vectors of columns.
template <class T, int Rows, int Pairs, int Count>
void add_values_tile(const float* weights, int64_t weight_stride, int64_t step,
                     const StreamRows<T, Count>& values, int64_t column, float* out,
                     int64_t out_stride) {
  Pair acc[Rows][Pairs];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Pairs; ++v)
      acc[r][v] = load_pair(out + r * out_stride + column + v * 2 * kLanes);
  }
#pragma GCC unroll 8
  for (int k = 0; k < Count; ++k) {
    Pair value[Pairs];
#pragma GCC unroll 8
    for (int v = 0; v < Pairs; ++v)
      value[v] = load_pair(values.of[k] + column + v * 2 * kLanes);
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
    for (int v = 0; v < Pairs; ++v)
      store_pair(out + r * out_stride + column + v * 2 * kLanes, acc[r][v]);
  }
}

// The same for the last columns, at most a vector of them.
template <class T, int Rows, int Count>
void add_last_values(const float* weights, int64_t weight_stride, int64_t step,
                     const StreamRows<T, Count>& values, int64_t column, int some, float* out,
                     int64_t out_stride) {
  Vec acc[Rows];
  for (int r = 0; r < Rows; ++r)
    acc[r] = load(out + r * out_stride + column);
  for (int k = 0; k < Count; ++k) {
    const Vec value = load_n(values.of[k] + column, some);
    for (int r = 0; r < Rows; ++r)
      acc[r] = fma(set1(weights[r * weight_stride + k * step]), value, acc[r]);
  }
  for (int r = 0; r < Rows; ++r)
    store(out + r * out_stride + column, acc[r]);
}

// Columns from `column` on, in strips of Pairs pairs of vectors, then of half as many, then one
// vector at a time.
template <class T, int Rows, int Pairs, int Count>
void add_columns(const float* weights, int64_t weight_stride, int64_t step,
                 const StreamRows<T, Count>& values, int64_t column, int64_t num_columns,
                 float* out, int64_t out_stride) {
  for (; column + Pairs * 2 * kLanes <= num_columns; column += Pairs * 2 * kLanes) {
    add_values_tile<T, Rows, Pairs>(weights, weight_stride, step, values, column, out, out_stride);
  }
  if constexpr (Pairs > 1) {
    return add_columns<T, Rows, Pairs / 2>(weights, weight_stride, step, values, column,
                                           num_columns, out, out_stride);
  }
  for (; column < num_columns; column += kLanes) {
    const int some = static_cast<int>(smaller(kLanes, num_columns - column));
    add_last_values<T, Rows>(weights, weight_stride, step, values, column, some, out, out_stride);
  }
}

// The slow, exact form for a row with hidden pairs: a hidden pair's weight is marked -0.
template <class T>
void add_visible_values(const QueryTile& tile, int64_t r, const T* value, int64_t j) {
  const float weight = tile.scores[r * tile.score_stride + j];
  if (weight == 0.0f && __builtin_signbit(weight)) return;
  float* out = tile.out + r * tile.out_stride;
  int64_t d = 0;
  for (; d + 2 * kLanes <= tile.head_dim_v; d += 2 * kLanes) {
    const Pair some = load_pair(value + d), sum = load_pair(out + d);
    store_pair(out + d, {fma(set1(weight), some.first, sum.first),
                         fma(set1(weight), some.second, sum.second)});
  }
  for (; d < tile.head_dim_v; d += kLanes) {
    const int some = static_cast<int>(smaller(kLanes, tile.head_dim_v - d));
    store(out + d, fma(set1(weight), load_n(value + d, some), load(out + d)));
  }
}

template <class T>
bool all_finite(const KeyRows& rows, int64_t head, int64_t num_columns) {
  Vec zero = {};
  for (int64_t k = 0; k < rows.count; ++k) {
    const T* value = row_of<T>(rows.values[k], head * rows.value_head_bytes);
    for (int64_t d = 0; d < num_columns; d += kLanes)
      zero += load_n(value + d, static_cast<int>(smaller(kLanes, num_columns - d))) * 0.0f;
  }
  return sum(zero) == 0.0f;
}

// Scores to weights. Returns whether the weights of hidden pairs are marked, because their values
// may not be multiplied by 0: something is infinite or NaN.
template <class T>
bool weigh_head(const QueryTile& tile, const KeyRows& rows, int64_t head) {
  const Reach reach = reach_of(tile.visible, tile.num_rows);
  const bool edge = reach.all.begin > rows.first || reach.all.end < rows.first + rows.count;
  const ScoreTile scores = {
      tile.scores, tile.score_stride, tile.num_rows, round_up(rows.count, kLanes),
      rows.first,  rows.count,        tile.visible};
  weigh(tile, 0, scores, edge);
  if (!edge && !(tile.options && tile.options->mask.data)) return false;
  if (all_finite<T>(rows, head, tile.head_dim_v)) return false;
  mark_hidden(tile, 0, scores);
  return true;
}

// out += P V of rows [first, first + Rows) of all heads. Values are read in two streams for each
// row: the sums of many rows stay longer in registers.
template <class T, int Rows>
void add_all(const QueryTile* tiles, int64_t num_heads, const KeyRows& rows, int64_t first,
             const bool* marked) {
  constexpr int kCount = 2 * Rows;
  const int64_t step = blocks_of(rows.count, kCount);
  const QueryTile shape = tiles[0];
  RowsOf<Rows> of[kMaxHeadsAtOnce];
  for (int64_t h = 0; h < num_heads; ++h)
    of[h] = RowsOf<Rows>(tiles[h], first);
  const auto add = [&]<int Count>(int64_t h, int64_t j, const StreamRows<T, Count>& values) {
    add_columns<T, Rows, 4 / Rows>(of[h].scores + j, shape.score_stride, step, values, 0,
                                   shape.head_dim_v, of[h].out, shape.out_stride);
  };
  for (int64_t j = 0; j < step; ++j) {
    StreamRows<T, kCount> values(rows.values, j, step, rows.count);
    for (int64_t h = 0; h < num_heads; ++h) {
      if (values.count == kCount && !marked[h]) {
        add(h, j, values);
      } else {
        for (int64_t k = 0; k < values.count; ++k) {
          if (marked[h]) {
            for (int r = 0; r < Rows; ++r)
              add_visible_values(tiles[h], first + r, values.of[k], j + k * step);
          } else {
            add(h, j + k * step, StreamRows<T, 1>(values.of[k]));
          }
        }
      }
      values = values.further(rows.value_head_bytes);
    }
  }
}

template <class T>
void attend_typed(const QueryTile* tiles, int64_t num_heads, const KeyRows& rows) {
  const int64_t num_rows = tiles[0].num_rows;
  by_rows(num_rows,
          [&]<int Rows>(int64_t first) { score_all<T, Rows>(tiles, num_heads, rows, first); });
  bool marked[kMaxHeadsAtOnce];
  for (int64_t h = 0; h < num_heads; ++h)
    marked[h] = weigh_head<T>(tiles[h], rows, h);
  by_rows(num_rows, [&]<int Rows>(int64_t first) {
    add_all<T, Rows>(tiles, num_heads, rows, first, marked);
  });
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
