// The outer loops of the matrix product. A task is a tile of C. For each slice of the depth it
// packs its rows of A once (they stay in the second-level cache), then takes B one panel at a time:
// packed into the first-level cache, multiplied with all rows, forgotten. (Goto & van de Geijn
// 2008, "Anatomy of high-performance matrix multiplication", with the loops cut where each thread
// owns its part of C, so nothing is shared and nothing is waited for.)

#include "cpu/gemm.h"

#include <algorithm>
#include <array>
#include <memory>
#include <new>

#include "core/parallel.h"
#include "flashmha/device.h"

namespace flashmha::cpu {
namespace {

// Rows and columns of C in a task, and the depth of a slice: 384 x 256 floats of A are 384 KiB of
// the second-level cache, 256 x 16 (AVX2) of B 16 KiB of the first.
constexpr int64_t kMaxRows = 384;
constexpr int64_t kMaxColumns = 512;
constexpr int64_t kMaxDepth = 256;
// Up to this depth the sums stay in C itself, if it can hold them. Deeper ones come back to it more
// often, and are kept in scratch without gaps.
constexpr int64_t kMaxDepthInPlace = 512;
constexpr int64_t kPageFloats = 1024;
// Smaller tiles than this spend more on packing than a better balance of the threads gives.
constexpr int64_t kMinRows = 96;
constexpr int64_t kMinColumns = 128;
// Columns of a task when the left operand has few rows, at least: enough to pay for handing it out.
constexpr int64_t kMinFewRowsColumns = 256;

int64_t ceil_div(int64_t count, int64_t block) {
  return (count + block - 1) / block;
}
int64_t round_up(int64_t count, int64_t block) {
  return ceil_div(count, block) * block;
}

int storage_of(DType dtype) {
  return dtype == DType::float32 ? 0 : dtype == DType::bfloat16 ? 1 : 2;
}

// Memory of the calling thread that grows and is kept, aligned to a cache line.
class Scratch {
 public:
  float* floats(int64_t count) {
    if (count > capacity_) {
      memory_.reset();
      memory_.reset(new (std::align_val_t{64}) float[static_cast<size_t>(count)]);
      capacity_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<float[], Free> memory_;
  int64_t capacity_ = 0;
};

thread_local Scratch left_scratch, panel_scratch, product_scratch, bias_scratch;

// How C is cut.
struct Tiling {
  int64_t rows, columns;          // of a tile
  int64_t num_rows, num_columns;  // tiles
};

Tiling even_tiles(const GemmProblem& p, const KernelTable& table, int64_t max_rows,
                  int64_t max_columns) {
  const int64_t rows = round_up(ceil_div(p.m, ceil_div(p.m, max_rows)), table.tile_rows);
  const int64_t columns = round_up(ceil_div(p.n, ceil_div(p.n, max_columns)), table.tile_columns);
  return {rows, columns, ceil_div(p.m, rows), ceil_div(p.n, columns)};
}

// True if B is read once, straight from memory.
bool has_few_rows(const GemmProblem& p) {
  if (p.b.column_stride == 1) return p.m <= kMaxFewRows;
  return p.b.row_stride == 1 && p.m <= kMaxFewRowsTransposed;
}

// The largest tiles that give every thread several tasks, so that the last ones even out.
Tiling choose_tiling(const GemmProblem& p, const KernelTable& table, int64_t num_products,
                     int threads) {
  if (has_few_rows(p)) {
    // Where B's rows are contiguous they are best read whole (8 KiB and more at a time: twice the
    // speed of 1 KiB); else its columns are, and more tasks balance better.
    const int tasks = p.b.column_stride == 1 ? threads : 4 * threads;
    const int64_t columns = std::max(kMinFewRowsColumns, ceil_div(p.n, tasks));
    return even_tiles(p, table, p.m, columns);
  }
  int64_t max_rows = kMaxRows, max_columns = kMaxColumns;
  Tiling tiling = even_tiles(p, table, max_rows, max_columns);
  const int64_t enough = threads == 1 ? 1 : 4 * threads;
  while (num_products * tiling.num_rows * tiling.num_columns < enough) {
    if (tiling.columns > tiling.rows && tiling.columns >= 2 * kMinColumns) {
      max_columns = tiling.columns / 2;
    } else if (tiling.rows >= 2 * kMinRows) {
      max_rows = tiling.rows / 2;
    } else {
      break;
    }
    tiling = even_tiles(p, table, max_rows, max_columns);
  }
  return tiling;
}

// One product of the batch.
struct Product {
  const GemmProblem& problem;
  const KernelTable& table;
  const char *a, *b;
  char* c;
  const float* bias;
};

Product product_at(const GemmProblem& p, const KernelTable& table, const float* bias,
                   int64_t index) {
  int64_t a = 0, b = 0, c = 0;
  for (int d = kGemmBatchDims - 1; d >= 0; --d) {
    const int64_t i = index % p.batch[d];
    index /= p.batch[d];
    a += i * p.a.batch_strides[d];
    b += i * p.b.batch_strides[d];
    c += i * p.c.batch_strides[d];
  }
  const auto at = [](const GemmMatrix& matrix, int64_t offset) {
    return static_cast<char*>(matrix.data) +
           offset * static_cast<int64_t>(dtype_bytes(matrix.dtype));
  };
  return {p, table, at(p.a, a), at(p.b, b), at(p.c, c), bias};
}

// A block of a matrix whose first element is `data`.
SourceBlock block_of(const GemmMatrix& matrix, const char* data, std::array<int64_t, 2> from,
                     std::array<int64_t, 2> size) {
  const int64_t offset = from[0] * matrix.row_stride + from[1] * matrix.column_stride;
  return {data + offset * static_cast<int64_t>(dtype_bytes(matrix.dtype)), matrix.row_stride,
          matrix.column_stride, size[0], size[1]};
}

SourceBlock transposed(const SourceBlock& block) {
  return {block.data, block.column_stride, block.row_stride, block.num_columns, block.num_rows};
}

// A block of A as float, times alpha: in place where it is that already. Not in place if its lines
// of memory run across the depth at a page's distance or more: they would push each other out of
// one set of the first-level cache.
LeftBlock pack_left(const Product& product, const SourceBlock& from) {
  const GemmProblem& p = product.problem;
  const GemmKernels& gemm = *product.table.gemm;
  const int storage = storage_of(p.a.dtype);
  const bool by_columns = from.row_stride == 1 && from.column_stride != 1;
  const SourceBlock rows = by_columns ? transposed(from) : from;
  const bool colliding = by_columns && rows.row_stride >= kPageFloats;
  if (rows.column_stride == 1 && storage == 0 && p.alpha == 1.0f && !colliding) {
    return {static_cast<const float*>(rows.data), rows.row_stride, by_columns};
  }
  const ScratchBlock to = {left_scratch.floats(rows.num_rows * rows.num_columns), rows.num_columns};
  const auto copy = rows.column_stride == 1 ? gemm.copy_rows[storage] : gemm.gather[storage];
  copy(rows, p.alpha, to);
  return {to.data, to.stride, by_columns};
}

const float* pack_right(const Product& product, const SourceBlock& from) {
  const GemmKernels& gemm = *product.table.gemm;
  const int storage = storage_of(product.problem.b.dtype);
  const int64_t width = product.table.tile_columns;
  float* panel = panel_scratch.floats(kMaxDepth * width);
  if (from.column_stride == 1) {
    gemm.pack_panel[storage](from, panel);
  } else if (from.row_stride == 1) {
    gemm.pack_panel_transposed[storage](from, panel);
  } else {
    std::fill_n(panel, from.num_rows * width, 0.0f);
    gemm.gather[storage](from, 1.0f, {panel, width});
  }
  return panel;
}

// product (+)= alpha a b for the tile of C at `from`.
void multiply_tile(const Product& product, std::array<int64_t, 2> from, std::array<int64_t, 2> size,
                   ScratchBlock out, bool accumulate) {
  const GemmProblem& p = product.problem;
  const auto [rows, columns] = size;
  const int64_t width = product.table.tile_columns;
  for (int64_t k = 0; k < p.k; k += kMaxDepth) {
    const int64_t depth = std::min(kMaxDepth, p.k - k);
    const LeftBlock left =
        pack_left(product, block_of(p.a, product.a, {from[0], k}, {rows, depth}));
    for (int64_t j = 0; j < columns; j += width) {
      const int64_t n = std::min(width, columns - j);
      const float* panel =
          pack_right(product, block_of(p.b, product.b, {k, from[1] + j}, {depth, n}));
      product.table.gemm->multiply_panel(rows, n, depth, left, panel, {out.data + j, out.stride},
                                         accumulate || k > 0);
    }
  }
}

// The same for few rows, whose whole depth is small: B goes by once.
void multiply_few_rows(const Product& product, int64_t from, int64_t rows, int64_t columns,
                       ScratchBlock out, bool accumulate) {
  const GemmProblem& p = product.problem;
  const GemmKernels& gemm = *product.table.gemm;
  float* left = left_scratch.floats(rows * p.k);
  gemm.gather[storage_of(p.a.dtype)](block_of(p.a, product.a, {0, 0}, {rows, p.k}), p.alpha,
                                     {left, p.k});
  const auto kernel = p.b.column_stride == 1 ? gemm.few_rows : gemm.few_rows_transposed;
  kernel[storage_of(p.b.dtype)](rows, left, block_of(p.b, product.b, {0, from}, {p.k, columns}),
                                out, accumulate);
}

void run_tile(const Product& product, std::array<int64_t, 2> from, std::array<int64_t, 2> size) {
  const GemmProblem& p = product.problem;
  const auto [rows, columns] = size;
  const auto bytes = static_cast<int64_t>(dtype_bytes(p.c.dtype));
  char* c = product.c + (from[0] * p.c.row_stride + from[1] * p.c.column_stride) * bytes;
  // C itself takes the sums when it can hold them; then beta = 1 starts the chains from C.
  const bool in_place = p.c.dtype == DType::float32 && p.c.column_stride == 1 && !product.bias &&
                        (p.beta == 0.0f || p.beta == 1.0f) && p.k > 0 && p.k <= kMaxDepthInPlace;
  const bool accumulate = in_place && p.beta == 1.0f;
  const ScratchBlock out = in_place ? ScratchBlock{reinterpret_cast<float*>(c), p.c.row_stride}
                                    : ScratchBlock{product_scratch.floats(rows * columns), columns};
  if (p.k == 0) {
    std::fill_n(out.data, rows * columns, 0.0f);
  } else if (has_few_rows(p)) {
    multiply_few_rows(product, from[1], rows, columns, out, accumulate);
  } else {
    multiply_tile(product, from, size, out, accumulate);
  }
  if (in_place) return;
  const FinishTask finish = {
      out.data,       out.stride,        rows,   columns,
      p.c.row_stride, p.c.column_stride, p.beta, product.bias ? product.bias + from[1] : nullptr};
  product.table.gemm->finish[storage_of(p.c.dtype)](finish, c);
}

const float* bias_as_float(const GemmProblem& p, const KernelTable& table) {
  if (!p.bias) return nullptr;
  float* bias = bias_scratch.floats(p.n);
  const SourceBlock from = {p.bias, 0, p.bias_stride, 1, p.n};
  table.gemm->gather[storage_of(p.bias_dtype)](from, 1.0f, {bias, p.n});
  return bias;
}

}  // namespace

void gemm(const GemmProblem& p, const KernelTable& table) {
  int64_t num_products = 1;
  for (const int64_t size : p.batch)
    num_products *= size;
  if (num_products == 0 || p.m == 0 || p.n == 0) return;
  const int threads = num_threads();
  const Tiling tiling = choose_tiling(p, table, num_products, threads);
  const float* bias = bias_as_float(p, table);
  const int64_t tiles = tiling.num_rows * tiling.num_columns;
  parallel_for(num_products * tiles, threads, [&](int64_t task, int) {
    const int64_t tile = task % tiles;
    // Neighbouring tasks share the columns of B, which threads then find in a shared cache.
    const int64_t row = tile % tiling.num_rows * tiling.rows;
    const int64_t column = tile / tiling.num_rows * tiling.columns;
    run_tile(product_at(p, table, bias, task / tiles), {row, column},
             {std::min(tiling.rows, p.m - row), std::min(tiling.columns, p.n - column)});
  });
}

}  // namespace flashmha::cpu
