// The parts of a matrix product that touch elements. Compiled once for each tier.

#include "cpu/gemm_kernels.h"

#include "cpu/microkernel.h"

namespace flashmha::cpu::FLASHMHA_ISA {

template <class T>
static void copy_rows(const SourceBlock& from, float scale, ScratchBlock to) {
  widen_rows(static_cast<const T*>(from.data), from.row_stride, from.num_rows, from.num_columns,
             scale, to.data, to.stride);
}

template <class T>
static void gather(const SourceBlock& from, float scale, ScratchBlock to) {
  const T* data = static_cast<const T*>(from.data);
  for (int64_t i = 0; i < from.num_rows; ++i) {
    for (int64_t j = 0; j < from.num_columns; ++j) {
      const T* element = data + i * from.row_stride + j * from.column_stride;
      to.data[i * to.stride + j] = load_one(element) * scale;
    }
  }
}

template <class T>
static void pack_rows(const SourceBlock& from, float* panel) {
  pack_panel(static_cast<const T*>(from.data), from.row_stride, from.num_rows, from.num_columns,
             panel);
}

template <class T>
static void pack_columns(const SourceBlock& from, float* panel) {
  pack_panel_transposed(static_cast<const T*>(from.data), from.column_stride, from.num_rows,
                        from.num_columns, panel);
}

static void multiply_panel(int64_t m, int64_t n, int64_t k, const LeftBlock& left,
                           const float* panel, ScratchBlock c, bool accumulate) {
  const ProductSize size = {m, n, k};
  const LeftView a = {left.data, left.stride};
  const RightView b = panels_view(panel, k);
  const OutView out = {c.data, c.stride};
  if (left.by_columns) {
    if (accumulate) return multiply<Left::kColumns, true>(size, a, b, out);
    return multiply<Left::kColumns, false>(size, a, b, out);
  }
  if (accumulate) return multiply<Left::kRows, true>(size, a, b, out);
  return multiply<Left::kRows, false>(size, a, b, out);
}

// ---- few rows: bound by reading b --------------------------------------------------------------

// Rows of b that are read side by side: as many streams as the hardware follows.
constexpr int kStreams = 8;

// c[Rows][columns] += left[Rows][Depth] b[Depth][columns], element chains in the order of k.
template <class T, int Rows, int Depth>
static void few_rows_step(const float* left, int64_t left_stride, const T* b, int64_t b_stride,
                          int64_t columns, ScratchBlock c) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int valid = static_cast<int>(smaller(kLanes, columns - j));
    Vec acc[Rows];
    for (int i = 0; i < Rows; ++i)
      acc[i] = load_n(c.data + i * c.stride + j, valid);
    for (int k = 0; k < Depth; ++k) {
      const T* from = b + k * b_stride + j;
      const Vec right = valid == kLanes ? load(from) : load_n(from, valid);
      for (int i = 0; i < Rows; ++i)
        acc[i] = fma(set1(left[i * left_stride + k]), right, acc[i]);
    }
    for (int i = 0; i < Rows; ++i)
      store_n(c.data + i * c.stride + j, acc[i], valid);
  }
}

template <class T, int Rows>
static void few_rows_of(const float* left, const SourceBlock& b, ScratchBlock c, bool accumulate) {
  const T* rows = static_cast<const T*>(b.data);
  if (!accumulate) {
    for (int i = 0; i < Rows; ++i) {
      for (int64_t j = 0; j < b.num_columns; ++j)
        c.data[i * c.stride + j] = 0.0f;
    }
  }
  int64_t k = 0;
  for (; k + kStreams <= b.num_rows; k += kStreams) {
    few_rows_step<T, Rows, kStreams>(left + k, b.num_rows, rows + k * b.row_stride, b.row_stride,
                                     b.num_columns, c);
  }
  for (; k < b.num_rows; ++k) {
    few_rows_step<T, Rows, 1>(left + k, b.num_rows, rows + k * b.row_stride, b.row_stride,
                              b.num_columns, c);
  }
}

// Groups of kLanes columns that are summed side by side, so that one's chain of FMAs covers the
// other's latency. More groups compute faster but read from memory slower: too many rows at once.
constexpr int kGroups = 2;

// kGroups * kLanes columns of c, of which `columns` exist. Each block of b is transposed in
// registers, which keeps the sum over k in one lane: the order of the register tile.
template <class T, int Rows>
static void few_columns_tile(int64_t depth, const float* left, const T* b, int64_t b_stride,
                             int64_t columns, ScratchBlock c, bool accumulate) {
  Vec acc[kGroups][Rows];
  for (int g = 0; g < kGroups; ++g) {
    const int valid = static_cast<int>(smaller(kLanes, columns - g * kLanes));
    for (int i = 0; i < Rows; ++i) {
      const float* from = c.data + i * c.stride + g * kLanes;
      acc[g][i] = accumulate && valid > 0 ? load_n(from, valid) : Vec{};
    }
  }
  constexpr int kDepth = kBlockDepth<T>;
  // A whole cache line of every row at a time: rows often lie a multiple of 4 KiB apart, so that
  // their lines share one set of the first-level cache and do not stay for a second visit.
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t k = 0;
  for (; k + kLine <= depth && columns == kGroups * kLanes; k += kLine) {
    for (int g = 0; g < kGroups; ++g) {
      for (int64_t part = k; part < k + kLine; part += kDepth) {
        Vec block[kDepth];
        transposed_block(b + g * kLanes * b_stride + part, b_stride, kDepth, kLanes, block);
        for (int d = 0; d < kDepth; ++d) {
          for (int i = 0; i < Rows; ++i) {
            acc[g][i] = fma(set1(left[i * depth + part + d]), block[d], acc[g][i]);
          }
        }
      }
    }
  }
  for (; k < depth; k += kDepth) {
    const int64_t rest = smaller(kDepth, depth - k);
    for (int g = 0; g < kGroups; ++g) {
      Vec block[kDepth];
      transposed_block(b + g * kLanes * b_stride + k, b_stride, rest, columns - g * kLanes, block);
      for (int d = 0; d < rest; ++d) {
        for (int i = 0; i < Rows; ++i) {
          acc[g][i] = fma(set1(left[i * depth + k + d]), block[d], acc[g][i]);
        }
      }
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    const int valid = static_cast<int>(smaller(kLanes, columns - g * kLanes));
    for (int i = 0; i < Rows && valid > 0; ++i) {
      store_n(c.data + i * c.stride + g * kLanes, acc[g][i], valid);
    }
  }
}

template <class T, int Rows>
static void few_rows_transposed_of(const float* left, const SourceBlock& b, ScratchBlock c,
                                   bool accumulate) {
  constexpr int64_t kColumns = kGroups * kLanes;
  const T* rows = static_cast<const T*>(b.data);
  for (int64_t j = 0; j < b.num_columns; j += kColumns) {
    few_columns_tile<T, Rows>(b.num_rows, left, rows + j * b.column_stride, b.column_stride,
                              smaller(kColumns, b.num_columns - j), {c.data + j, c.stride},
                              accumulate);
  }
}

template <class T>
static void few_rows(int64_t m, const float* left, const SourceBlock& b, ScratchBlock c,
                     bool accumulate) {
  switch (m) {
    case 1: return few_rows_of<T, 1>(left, b, c, accumulate);
    case 2: return few_rows_of<T, 2>(left, b, c, accumulate);
    case 3: return few_rows_of<T, 3>(left, b, c, accumulate);
    default: return few_rows_of<T, kMaxFewRows>(left, b, c, accumulate);
  }
}

template <class T>
static void few_rows_transposed(int64_t m, const float* left, const SourceBlock& b, ScratchBlock c,
                                bool accumulate) {
  switch (m) {
    case 1: return few_rows_transposed_of<T, 1>(left, b, c, accumulate);
    case 2: return few_rows_transposed_of<T, 2>(left, b, c, accumulate);
    case 3: return few_rows_transposed_of<T, 3>(left, b, c, accumulate);
    default: return few_rows_transposed_of<T, kMaxFewRows>(left, b, c, accumulate);
  }
}

// ---- the way out -------------------------------------------------------------------------------

template <class T>
static void finish_row(const FinishTask& task, const float* product, T* out) {
  for (int64_t j = 0; j < task.num_columns; j += kLanes) {
    const int valid = static_cast<int>(smaller(kLanes, task.num_columns - j));
    Vec value = load_n(product + j, valid);
    if (task.beta != 0.0f) value += task.beta * load_n(out + j, valid);
    if (task.bias) value += load_n(task.bias + j, valid);
    store_n(out + j, value, valid);
  }
}

template <class T>
static void finish(const FinishTask& task, void* out) {
  for (int64_t i = 0; i < task.num_rows; ++i) {
    const float* product = task.product + i * task.product_stride;
    T* row = static_cast<T*>(out) + i * task.row_stride;
    if (task.column_stride == 1) {
      finish_row(task, product, row);
      continue;
    }
    for (int64_t j = 0; j < task.num_columns; ++j) {
      T* element = row + j * task.column_stride;
      float value = product[j];
      if (task.beta != 0.0f) value += task.beta * load_one(element);
      if (task.bias) value += task.bias[j];
      store_one(element, value);
    }
  }
}

extern const GemmKernels gemm_kernels;
constexpr GemmKernels gemm_kernels = {
    .copy_rows = {copy_rows<float>, copy_rows<Bf16>, copy_rows<Fp16>},
    .gather = {gather<float>, gather<Bf16>, gather<Fp16>},
    .pack_panel = {pack_rows<float>, pack_rows<Bf16>, pack_rows<Fp16>},
    .pack_panel_transposed = {pack_columns<float>, pack_columns<Bf16>, pack_columns<Fp16>},
    .multiply_panel = multiply_panel,
    .few_rows = {few_rows<float>, few_rows<Bf16>, few_rows<Fp16>},
    .few_rows_transposed = {few_rows_transposed<float>, few_rows_transposed<Bf16>,
                            few_rows_transposed<Fp16>},
    .finish = {finish<float>, finish<Bf16>, finish<Fp16>},
};

}  // namespace flashmha::cpu::FLASHMHA_ISA
