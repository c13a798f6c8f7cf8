#pragma once

// What the host side of attention (forward.cpp, backward.cpp, decode.cpp: sequences, pages, tasks,
// threads) hands to the kernels of a tier (*_kernels.cpp: arithmetic). Plain data only: inline
// functions of shared headers must not be compiled for a tier.

#include <cstdint>

namespace flashmha::cpu {

constexpr int kMaxKeyBlock = 256;
constexpr int kMaxGroupRows = 24;
constexpr int kMaxHeadsAtOnce = 64;

enum class Storage : std::uint8_t { float32, bfloat16, float16 };

// Keys [begin, end) of a sequence that one query row sees.
struct Span {
  std::int64_t begin;
  std::int64_t end;
};

// A bias or boolean mask of one head; strides in elements, 0 where broadcast.
struct PairMap {
  const void* data;  // nullptr: not given
  Storage storage;   // of a bias
  std::int64_t row_stride;
  std::int64_t column_stride;
};

// What happens to the scores of one head besides scaling and the band. Row and column are positions
// in the sequence.
struct ScoreOptions {
  float softcap;      // 0: off
  float alibi_slope;  // 0: off
  std::int64_t alibi_shift;
  PairMap bias;
  PairMap mask;
  // Fills keep[0, count) with 1 or 0 for columns [first, first + count) of a row; nullptr: no
  // dropout.
  void (*keep_columns)(const void* dropout, std::int64_t row, std::int64_t first,
                       std::int64_t count, float* keep);
  const void* dropout;
};

// Query rows that attend together: row r is query first_row + r % rows_per_head of the head that
// options[r / rows_per_head] describes. One head in the tiled forward, a whole group of heads
// (which share their keys) where the queries are few. All pointers are scratch of the worker.
struct QueryTile {
  std::int64_t num_rows;
  std::int64_t rows_per_head;
  std::int64_t first_row;
  std::int64_t head_dim;
  std::int64_t head_dim_v;
  const Span* visible;          // [num_rows]
  const ScoreOptions* options;  // [num_rows / rows_per_head]; nullptr: no head has any
  float* q;                     // [num_rows, q_stride]: scaled queries, zero beyond head_dim
  std::int64_t q_stride;
  float* out;  // [num_rows, out_stride]: sum of exp(score - top) v
  std::int64_t out_stride;
  float* top;     // [num_rows]: highest score so far
  float* sum;     // [num_rows]: sum of exp(score - top)
  float* scores;  // [kGroupRows or num_rows, score_stride]
  std::int64_t score_stride;
};

// Consecutive keys of one head, packed: keys as panels of K^T, values as panels of V (pack.h).
struct KeyBlock {
  std::int64_t first;     // position of the first key
  std::int64_t count;     // keys in the block
  std::int64_t capacity;  // rows of a panel of values
  const float* keys;
  const float* values;
  bool finite;  // no inf or nan among the values
};

// Consecutive keys in place: one pointer a row, so that pages need no thought here.
struct KeyRows {
  std::int64_t first;
  std::int64_t count;
  const void* const* keys;
  const void* const* values;
  Storage storage;
  std::int64_t key_head_bytes = 0;  // from the row of a head to that of the next
  std::int64_t value_head_bytes = 0;
};

// forward_kernels.cpp
struct ForwardKernels {
  // Packs count <= capacity rows of keys and values. Returns whether all values are finite.
  bool (*pack_keys)(const KeyRows& rows, std::int64_t head_dim, std::int64_t head_dim_v,
                    std::int64_t capacity, float* keys, float* values);
  // Copies num_rows queries to rows [first, first + num_rows) of the tile, scaled, and starts their
  // sums; sink is the head's logit, -inf for none.
  void (*load_queries)(const QueryTile& tile, std::int64_t first, std::int64_t num_rows,
                       Storage storage, const void* q, std::int64_t stride, float scale,
                       float sink);
  // Lets all queries of the tile attend to a block of keys.
  void (*attend_block)(const QueryTile& tile, const KeyBlock& block);
  // Adds the sums of `part` (the same queries, other keys) to those of the tile.
  void (*merge)(const QueryTile& tile, const QueryTile& part);
  // Writes scale * out / sum and, unless it is null, the lse of rows [first, first + num_rows).
  void (*store_queries)(const QueryTile& tile, std::int64_t first, std::int64_t num_rows,
                        Storage storage, void* out, std::int64_t stride, float* lse, float scale);
};

// decode_kernels.cpp
struct DecodeKernels {
  // Between the two, q and out of a tile have the order of columns in which keys and values of that
  // storage are widened.
  void (*begin_rows)(const QueryTile& tile, Storage storage);
  void (*end_rows)(const QueryTile& tile, Storage storage);
  // Lets the few queries of num_heads <= kMaxHeadsAtOnce consecutive key heads attend to keys in
  // place; one tile a key head, rows of the first head given.
  void (*attend_rows)(const QueryTile* tiles, std::int64_t num_heads, const KeyRows& rows);
};

// One block of keys with its gradients, for backward. Panels and row-major blocks of floats.
struct GradientKeys {
  std::int64_t first;
  std::int64_t count;
  std::int64_t capacity;     // columns of the score tiles
  float* keys_transposed;    // panels of K^T
  float* values_transposed;  // panels of V^T
  float* keys;               // [count, key_stride]
  std::int64_t key_stride;
  float* dk;  // [count, key_stride]
  float* dv;  // [count, value_stride]
  std::int64_t value_stride;
  bool finite;
};

// One block of queries of one head, for backward.
struct GradientTile {
  std::int64_t num_rows;
  std::int64_t first_row;
  std::int64_t head_dim;
  std::int64_t head_dim_v;
  const Span* visible;
  const ScoreOptions* options;  // nullptr: none
  float dropout_scale;          // 1 / (1 - p)
  float* q;                     // [num_rows, q_stride], scaled
  std::int64_t q_stride;
  float* dout;  // [num_rows, dout_stride]
  std::int64_t dout_stride;
  const float* lse;    // [num_rows]
  const float* delta;  // [num_rows]: dout . out - dlse
  float* p;            // [num_rows, score_stride]
  float* ds;           // same
  float* slope;        // same: derivative of the softcap; nullptr to leave it out of ds
  std::int64_t score_stride;
  bool finite;
};

// backward_kernels.cpp
struct BackwardKernels {
  // delta = dout . out - dlse of num_rows rows; dlse may be nullptr.
  void (*row_deltas)(std::int64_t num_rows, std::int64_t head_dim_v, Storage storage,
                     const void* dout, std::int64_t dout_stride, const void* out,
                     std::int64_t out_stride, const float* dlse, float* delta);
  // Packs the keys and values and clears their gradients.
  void (*load_keys)(GradientKeys& block, const KeyRows& rows, std::int64_t head_dim,
                    std::int64_t head_dim_v);
  // Copies a block of queries, scaled, and of dout.
  void (*load_queries)(GradientTile& tile, Storage storage, const void* q, std::int64_t q_stride,
                       const void* dout, std::int64_t dout_stride, float scale);
  // p and ds of the pairs of a tile; ds includes the derivative of the softcap if the tile has
  // slopes.
  void (*differentiate)(const GradientTile& tile, const GradientKeys& block);
  // dv += p^T dout, dk += ds^T q.
  void (*add_key_gradients)(const GradientTile& tile, const GradientKeys& block);
  // dq += ds k.
  void (*add_query_gradients)(const GradientTile& tile, const GradientKeys& block, float* dq,
                              std::int64_t dq_stride);
  // out[i * row_step + j * column_step] += ds; a step is 0 where the bias is broadcast.
  void (*add_bias_gradient)(const GradientTile& tile, const GradientKeys& block, float* out,
                            std::int64_t row_step, std::int64_t column_step);
  // out = in * scale, rounded to storage.
  void (*store_rows)(std::int64_t num_rows, std::int64_t num_columns, const float* in,
                     std::int64_t in_stride, float scale, Storage storage, void* out,
                     std::int64_t out_stride);
};

}  // namespace flashmha::cpu
