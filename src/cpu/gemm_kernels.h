#pragma once

#include <cstdint>

namespace flashmha::cpu {

// The parts of a matrix product that are compiled once for each tier; gemm.cpp puts them together.
// Tables are indexed by storage: 0 float, 1 bf16, 2 fp16. Strides are in elements.

constexpr int kNumStorages = 3;

// Rows of the left operand that one pass over the weights serves without a register tile.
constexpr int kMaxFewRows = 4;
// The same where B's columns are contiguous: its panels serve more rows from the cache.
constexpr int kMaxFewRowsTransposed = 8;

// A block of a matrix in storage, read as float.
struct SourceBlock {
  const void* data;
  int64_t row_stride, column_stride;
  int64_t num_rows, num_columns;
};

// A block of float scratch.
struct ScratchBlock {
  float* data;
  int64_t stride;
};

// The left operand as float: element (i, k) at data + i * stride + k, or at data + k * stride + i.
struct LeftBlock {
  const float* data;
  int64_t stride;
  bool by_columns;
};

struct FinishTask {
  const float* product;  // [num_rows][num_columns], product_stride
  int64_t product_stride;
  int64_t num_rows, num_columns;
  int64_t row_stride, column_stride;  // of out
  float beta;
  const float* bias;  // one for each column, or null
};

struct GemmKernels {
  // to[i][j] = from[i][j] * scale. Any strides; fast when one of the two is 1, in which case
  // `copy_rows` needs column_stride 1.
  void (*copy_rows[kNumStorages])(const SourceBlock& from, float scale, ScratchBlock to);
  void (*gather[kNumStorages])(const SourceBlock& from, float scale, ScratchBlock to);

  // One panel of at most tile_columns columns. Rows as B has them (column_stride 1), or B's columns
  // as rows in memory (row_stride 1).
  void (*pack_panel[kNumStorages])(const SourceBlock& from, float* panel);
  void (*pack_panel_transposed[kNumStorages])(const SourceBlock& from, float* panel);

  // c[m][n] (+)= left[m][k] panel[k][n], n <= tile_columns.
  void (*multiply_panel)(int64_t m, int64_t n, int64_t k, const LeftBlock& left, const float* panel,
                         ScratchBlock c, bool accumulate);

  // c[m][j] (+)= sum over k of left[m][k] b[k][j] for m <= kMaxFewRows rows (transposed, row_stride
  // 1: kMaxFewRowsTransposed), reading b once, straight from memory. The same chains of FMAs as
  // multiply_panel: equal bits.
  void (*few_rows[kNumStorages])(int64_t m, const float* left, const SourceBlock& b, ScratchBlock c,
                                 bool accumulate);
  void (*few_rows_transposed[kNumStorages])(int64_t m, const float* left, const SourceBlock& b,
                                            ScratchBlock c, bool accumulate);

  // out = product + beta * out + bias, rounded to the storage. out is not read when beta is 0.
  void (*finish[kNumStorages])(const FinishTask& task, void* out);
};

}  // namespace flashmha::cpu
