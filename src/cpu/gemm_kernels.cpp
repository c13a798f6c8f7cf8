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

// Where b's columns are contiguous (weights [n, k]), kFewColumns of them are taken together: a
// short part is transposed into a panel, which keeps the sum over k in one lane (the order of the
// register tile), and multiplied with all rows while memory brings the part that comes kPartBytes
// later. Two things decide the speed: enough chains of FMAs side by side to cover their latency,
// and reads that are asked for evenly and in the order of memory, as the hardware's own prefetching
// follows only one or two streams well.
constexpr int kFewColumns = 32;
constexpr int kGroups = kFewColumns / kLanes;
constexpr int64_t kLineBytes = 64;
constexpr int64_t kPanelBytes = 2 * kLineBytes;  // of a column of b in one panel
constexpr int64_t kPartBytes = 4096;             // of a column of b that is asked for at once
constexpr int kFirstLines = 512;                 // asked for before the work starts

// Asks for parts of columns, a line at a time, into the second-level cache.
class ReadAhead {
 public:
  ReadAhead() = default;
  ReadAhead(const void* first, int64_t stride_bytes, int64_t part_bytes, int64_t num_columns)
      : line_(static_cast<const char*>(first)),
        lines_of_part_(blocks_of(part_bytes, kLineBytes)),
        lines_left_(lines_of_part_),
        to_next_part_(stride_bytes - lines_of_part_ * kLineBytes),
        columns_left_(num_columns) {}

  void ask(int num_lines) {
    for (; num_lines > 0 && columns_left_ > 0; --num_lines) {
      __builtin_prefetch(line_, 0, 2);
      line_ += kLineBytes;
      if (--lines_left_ > 0) continue;
      line_ += to_next_part_;
      lines_left_ = lines_of_part_;
      --columns_left_;
    }
  }

 private:
  const char* line_ = nullptr;
  int64_t lines_of_part_ = 0;
  int64_t lines_left_ = 0;
  int64_t to_next_part_ = 0;
  int64_t columns_left_ = 0;
};

// Elements of a column in one word of a panel: bf16 stays in pairs until it is multiplied, so that
// half as many words are transposed and stored.
template <class T>
constexpr int kWordDepth = 1;
template <>
constexpr int kWordDepth<Bf16> = 2;

template <class T>
static Vec load_block_row(const T* from) {
  if constexpr (kWordDepth<T> == 2) return (Vec)load_words(from);
  return load(from);
}

// A whole panel: row w, column j is word w of column j of b.
template <class T>
static void pack_words(const T* b, int64_t stride, float* panel, ReadAhead& ahead) {
  constexpr int64_t kLine = kLineBytes / sizeof(T);
  for (int64_t k = 0; k < kPanelBytes / static_cast<int64_t>(sizeof(T)); k += kLine) {
    for (int g = 0; g < kGroups; ++g) {
      ahead.ask(kLanes / 2);  // the other half: multiply_words
      for (int64_t part = k; part < k + kLine; part += kBlockDepth<T>) {
        const T* from = b + g * kLanes * stride + part;
        Vec block[kLanes];
        for (int j = 0; j < kLanes; ++j)
          block[j] = load_block_row(from + j * stride);
        transpose(block);
        float* to = panel + part / kWordDepth<T> * kFewColumns + g * kLanes;
        for (int d = 0; d < kLanes; ++d)
          store(to + d * kFewColumns, block[d]);
      }
    }
  }
}

// A panel of floats of any depth and at most kFewColumns columns; the others become zero.
template <class T>
static void pack_floats(const T* b, int64_t stride, int64_t depth, int64_t columns, float* panel) {
  for (int64_t k = 0; k < depth; k += kBlockDepth<T>) {
    const int64_t rest = smaller(kBlockDepth<T>, depth - k);
    for (int g = 0; g < kGroups; ++g) {
      Vec block[kBlockDepth<T>];
      transposed_block(b + g * kLanes * stride + k, stride, rest, columns - g * kLanes, block);
      for (int d = 0; d < rest; ++d)
        store(panel + (k + d) * kFewColumns + g * kLanes, block[d]);
    }
  }
}

// sums[Rows][Groups * kLanes] += left[Rows][depth] panel, element chains in the order of k.
template <int WordDepth, int Rows, int Groups>
static void multiply_words(const float* left, int64_t left_stride, const float* panel,
                           int64_t depth, float* sums, ReadAhead& ahead) {
  Vec acc[Rows][Groups];
  for (int i = 0; i < Rows; ++i) {
    for (int g = 0; g < Groups; ++g)
      acc[i][g] = load(sums + i * kFewColumns + g * kLanes);
  }
  for (int64_t k = 0; k < depth; k += WordDepth, panel += kFewColumns) {
    ahead.ask(1);
    Vec words[Groups];
    for (int g = 0; g < Groups; ++g)
      words[g] = load(panel + g * kLanes);
    for (int half = 0; half < WordDepth; ++half) {
      Vec right[Groups];
      for (int g = 0; g < Groups; ++g) {
        const Vec even = (Vec)((IVec)words[g] << 16), odd = (Vec)((IVec)words[g] & -0x10000);
        right[g] = WordDepth == 1 ? words[g] : half == 0 ? even : odd;
      }
      for (int i = 0; i < Rows; ++i) {
        const Vec scale = set1(left[i * left_stride + k + half]);
        for (int g = 0; g < Groups; ++g)
          acc[i][g] = fma(scale, right[g], acc[i][g]);
      }
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int g = 0; g < Groups; ++g)
      store(sums + i * kFewColumns + g * kLanes, acc[i][g]);
  }
}

// As many groups at once as leave registers for the right side.
template <int WordDepth, int Rows>
static void multiply_rows(const float* left, int64_t left_stride, const float* panel, int64_t depth,
                          float* sums, ReadAhead& ahead) {
  constexpr int kSideBySide = Rows * kGroups > 8 && kGroups > 1 ? kGroups / 2 : kGroups;
  for (int g = 0; g < kGroups; g += kSideBySide) {
    multiply_words<WordDepth, Rows, kSideBySide>(left, left_stride, panel + g * kLanes, depth,
                                                 sums + g * kLanes, ahead);
  }
}

template <int WordDepth>
static void multiply_few(int64_t m, const float* left, int64_t left_stride, const float* panel,
                         int64_t depth, float* sums, ReadAhead& ahead) {
  for (; m >= 4; m -= 4, left += 4 * left_stride, sums += 4 * kFewColumns)
    multiply_rows<WordDepth, 4>(left, left_stride, panel, depth, sums, ahead);
  if (m == 3) multiply_rows<WordDepth, 3>(left, left_stride, panel, depth, sums, ahead);
  if (m == 2) multiply_rows<WordDepth, 2>(left, left_stride, panel, depth, sums, ahead);
  if (m == 1) multiply_rows<WordDepth, 1>(left, left_stride, panel, depth, sums, ahead);
}

// At most kFewColumns columns of b from column j on, for all rows. sums: [m][kFewColumns].
template <class T>
static void multiply_columns(int64_t m, const float* left, const SourceBlock& b, int64_t j,
                             float* sums) {
  constexpr int64_t kPart = kPartBytes / sizeof(T), kDepth = kPanelBytes / sizeof(T);
  const auto part_at = [&](int64_t column, int64_t k) {
    const T* first = static_cast<const T*>(b.data) + column * b.column_stride + k;
    const int64_t bytes = smaller(kPart, b.num_rows - k) * static_cast<int64_t>(sizeof(T));
    return ReadAhead(first, b.column_stride * static_cast<int64_t>(sizeof(T)), bytes,
                     smaller(kFewColumns, b.num_columns - column));
  };
  alignas(64) float panel[kDepth * kFewColumns];
  const int64_t columns = smaller(kFewColumns, b.num_columns - j);
  ReadAhead ahead = part_at(j, 0);
  if (j == 0) ahead.ask(kFirstLines);
  for (int64_t k = 0; k < b.num_rows; k += kDepth) {
    if (k % kPart == 0) {
      ahead = ReadAhead();
      if (k + kPart < b.num_rows) {
        ahead = part_at(j, k + kPart);
      } else if (j + kFewColumns < b.num_columns) {
        ahead = part_at(j + kFewColumns, 0);
      }
    }
    const T* from = static_cast<const T*>(b.data) + j * b.column_stride + k;
    const int64_t depth = smaller(kDepth, b.num_rows - k);
    if (columns == kFewColumns && depth == kDepth) {
      pack_words(from, b.column_stride, panel, ahead);
      multiply_few<kWordDepth<T>>(m, left + k, b.num_rows, panel, depth, sums, ahead);
    } else {
      pack_floats(from, b.column_stride, depth, columns, panel);
      multiply_few<1>(m, left + k, b.num_rows, panel, depth, sums, ahead);
    }
  }
}

template <class T>
static void few_rows_transposed(int64_t m, const float* left, const SourceBlock& b, ScratchBlock c,
                                bool accumulate) {
  alignas(64) float sums[kMaxFewRowsTransposed * kFewColumns];
  for (int64_t j = 0; j < b.num_columns; j += kFewColumns) {
    const int64_t columns = smaller(kFewColumns, b.num_columns - j);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t n = 0; n < kFewColumns; ++n) {
        const bool start = accumulate && n < columns;
        sums[i * kFewColumns + n] = start ? c.data[i * c.stride + j + n] : 0.0f;
      }
    }
    multiply_columns<T>(m, left, b, j, sums);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t n = 0; n < columns; ++n)
        c.data[i * c.stride + j + n] = sums[i * kFewColumns + n];
    }
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
