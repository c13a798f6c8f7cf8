#pragma once

// What is done to a tile of scores between the two products: the score options, the mask, softmax.
// Shared by forward, decode and backward; compiled for a tier.

#include "cpu/attention_tile.h"
#include "cpu/microkernel.h"
#include "cpu/vector_math.h"

namespace flashmha::cpu::FLASHMHA_ISA {

constexpr float kMinusInfinity = -__builtin_inff();

inline int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// Calls body with a null pointer to the element type that `storage` names.
template <class Body>
inline void visit_storage(Storage storage, Body body) {
  switch (storage) {
    case Storage::float32: return body(static_cast<const float*>(nullptr));
    case Storage::bfloat16: return body(static_cast<const Bf16*>(nullptr));
    case Storage::float16: return body(static_cast<const Fp16*>(nullptr));
  }
}

// Keys that some and that all of a few rows see.
struct Reach {
  Span any;
  Span all;
};

inline Reach reach_of(const Span* visible, int64_t num_rows) {
  constexpr int64_t kFar = int64_t{1} << 62;
  Reach reach = {{kFar, 0}, {0, kFar}};
  for (int64_t r = 0; r < num_rows; ++r) {
    reach.all.begin = larger(reach.all.begin, visible[r].begin);
    reach.all.end = smaller(reach.all.end, visible[r].end);
    if (visible[r].begin >= visible[r].end) continue;
    reach.any.begin = smaller(reach.any.begin, visible[r].begin);
    reach.any.end = larger(reach.any.end, visible[r].end);
  }
  return reach;
}

// The part of a score tile that one call works on: rows of queries, columns of keys.
struct ScoreTile {
  float* data;
  int64_t stride;
  int64_t num_rows;
  int64_t num_columns;  // a multiple of kLanes
  int64_t first_key;    // position of column 0
  int64_t num_keys;     // columns of real keys; what lies behind is padding
  const Span* visible;  // of the rows
};

// Up to kLanes elements of a bias from `column` on; count of them exist.
template <class T>
inline Vec bias_vector(const T* row, int64_t column_stride, int64_t column, int count) {
  if (column_stride == 1) return count == kLanes ? load(row + column) : load_n(row + column, count);
  if (column_stride == 0) return set1(load_one(row));
  Vec v = {};
  for (int i = 0; i < count; ++i)
    v[i] = load_one(row + (column + i) * column_stride);
  return v;
}

inline IVec mask_vector(const uint8_t* row, int64_t column_stride, int64_t column, int count) {
  IVec v = {};
  for (int i = 0; i < count; ++i)
    v[i] = row[(column + i) * column_stride];
  return v != 0;
}

// Applies `change(scores, column, count)` to every vector of row r.
template <class Change>
inline void change_row(const ScoreTile& tile, int64_t r, Change change) {
  float* row = tile.data + r * tile.stride;
  for (int64_t c = 0; c < tile.num_columns; c += kLanes) {
    const int64_t rest = tile.num_keys - c;
    const int count = static_cast<int>(rest < 0 ? 0 : smaller(rest, kLanes));
    store(row + c, change(load(row + c), c, count));
  }
}

// score = softcap * tanh(score / softcap) - slope * |i + shift - j| + bias. slopes, if given,
// receives d score / d (scaled product) = 1 - tanh^2. `query` is the position of row r.
inline void transform_row(const ScoreTile& tile, int64_t r, int64_t query,
                          const ScoreOptions& options, float* slopes) {
  if (options.softcap > 0.0f) {
    const Vec inverse = set1(1.0f / options.softcap);
    change_row(tile, r, [&](Vec x, int64_t c, int) {
      const Vec t = tanh(x * inverse);
      if (slopes) store(slopes + c, 1.0f - t * t);
      return t * options.softcap;
    });
  }
  if (options.alibi_slope != 0.0f) {
    const float distance = static_cast<float>(query + options.alibi_shift - tile.first_key);
    const Vec lanes = to_float(lane_index());
    change_row(tile, r, [&](Vec x, int64_t c, int) {
      return x - abs(distance - (static_cast<float>(c) + lanes)) * options.alibi_slope;
    });
  }
  if (options.bias.data) {
    const PairMap& bias = options.bias;
    visit_storage(bias.storage, [&]<class T>(const T*) {
      const T* row = static_cast<const T*>(bias.data) + query * bias.row_stride;
      change_row(tile, r, [&](Vec x, int64_t c, int count) {
        return x + bias_vector(row, bias.column_stride, tile.first_key + c, count);
      });
    });
  }
}

// Gives the value to every pair of row r that the boolean mask hides.
inline void mask_row(const ScoreTile& tile, int64_t r, int64_t query, const PairMap& mask,
                     float value) {
  const uint8_t* row = static_cast<const uint8_t*>(mask.data) + query * mask.row_stride;
  change_row(tile, r, [&](Vec x, int64_t c, int count) {
    return select(mask_vector(row, mask.column_stride, tile.first_key + c, count), x, set1(value));
  });
}

// Gives the value to every pair of the tile outside the rows' bands, padding included.
inline void hide(const ScoreTile& tile, float value) {
  for (int64_t r = 0; r < tile.num_rows; ++r) {
    float* row = tile.data + r * tile.stride;
    const int64_t begin = smaller(tile.visible[r].begin - tile.first_key, tile.num_columns);
    const int64_t end = larger(0, smaller(tile.visible[r].end - tile.first_key, tile.num_keys));
    for (int64_t c = 0; c < begin; ++c)
      row[c] = value;
    for (int64_t c = end; c < tile.num_columns; ++c)
      row[c] = value;
  }
}

inline void drop_row(const ScoreTile& tile, int64_t r, const float* keep) {
  change_row(tile, r, [&](Vec p, int64_t c, int) { return p * load(keep + c); });
}

// C += A B where A's negative zeros mark hidden pairs: what lies behind them in B is not touched,
// so that a NaN reaches exactly the rows that see it. Only for tiles that hold both hidden pairs
// and something infinite or NaN. size.n is a multiple of kLanes.
template <Left kLeft>
inline void multiply_visible(ProductSize size, LeftView a, const float* b, int64_t panel_stride,
                             int64_t row_stride, OutView c) {
  const int64_t row = kLeft == Left::kRows ? a.stride : 1;
  const int64_t step = kLeft == Left::kRows ? 1 : a.stride;
  for (int64_t i = 0; i < size.m; ++i) {
    for (int64_t k = 0; k < size.k; ++k) {
      const float weight = a.data[i * row + k * step];
      if (weight == 0.0f && __builtin_signbit(weight)) continue;
      for (int64_t j = 0; j < size.n; j += kLanes) {
        const float* right =
            b + j / kTileColumns * panel_stride + k * row_stride + j % kTileColumns;
        float* sum = c.data + i * c.stride + j;
        store(sum, fma(set1(weight), load(right), load(sum)));
      }
    }
  }
}

}  // namespace flashmha::cpu::FLASHMHA_ISA
