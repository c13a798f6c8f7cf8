// Compiled once for each tier.

#include "tests/cpu/tier_functions.h"

#include "cpu/microkernel.h"
#include "cpu/vector_math.h"

namespace flashmha::cpu::FLASHMHA_ISA {

template <class T>
static void widen_all(const void* in, float* out, int64_t count) {
  const T* from = static_cast<const T*>(in);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store(out + i, load(from + i));
  const int rest = static_cast<int>(count - i);
  store_n(out + i, load_n(from + i, rest), rest);
}

template <class T>
static void narrow_all(const float* in, void* out, int64_t count) {
  T* to = static_cast<T*>(out);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store(to + i, load(in + i));
  const int rest = static_cast<int>(count - i);
  store_n(to + i, load_n(in + i, rest), rest);
}

template <Vec (*kFunction)(Vec)>
static void map(const float* in, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store(out + i, kFunction(load(in + i)));
  const int rest = static_cast<int>(count - i);
  store_n(out + i, kFunction(load_n(in + i, rest)), rest);
}

static float sum_of(const float* lanes) {
  return sum(load(lanes));
}
static float highest_of(const float* lanes) {
  return highest(load(lanes));
}

template <class T>
static void pack_all(bool is_transposed, const void* in, int64_t in_stride, int64_t num_rows,
                     int64_t num_columns, float* panels) {
  const T* from = static_cast<const T*>(in);
  for (int64_t j = 0; j < num_columns; j += kTileColumns) {
    const int64_t columns = smaller(kTileColumns, num_columns - j);
    float* panel = panels + j * num_rows;
    if (is_transposed) {
      pack_panel_transposed(from + j * in_stride, in_stride, num_rows, columns, panel);
    } else {
      pack_panel(from + j, in_stride, num_rows, columns, panel);
    }
  }
}

template <class T>
static void widen_all_rows(const void* in, int64_t in_stride, int64_t num_rows, int64_t num_columns,
                           float scale, float* out) {
  widen_rows(static_cast<const T*>(in), in_stride, num_rows, num_columns, scale, out, num_columns);
}

static void multiply_all(int64_t m, int64_t n, int64_t k, const float* a, bool by_columns,
                         const float* panels, float* c, bool accumulate) {
  const ProductSize size = {m, n, k};
  const LeftView left = {a, by_columns ? m : k};
  const RightView right = panels_view(panels, k);
  const OutView out = {c, n};
  if (by_columns && accumulate) return multiply<Left::kColumns, true>(size, left, right, out);
  if (by_columns) return multiply<Left::kColumns, false>(size, left, right, out);
  if (accumulate) return multiply<Left::kRows, true>(size, left, right, out);
  multiply<Left::kRows, false>(size, left, right, out);
}

constexpr tests::TierFunctions kFunctions = {
    .name = kTierName,
    .lanes = kLanes,
    .tile_rows = kTileRows,
    .tile_columns = kTileColumns,
    .widen = {widen_all<float>, widen_all<Bf16>, widen_all<Fp16>},
    .narrow = {narrow_all<float>, narrow_all<Bf16>, narrow_all<Fp16>},
    .exp2 = map<exp2>,
    .exp = map<exp>,
    .tanh = map<tanh>,
    .log = map<log>,
    .sum = sum_of,
    .highest = highest_of,
    .pack = {pack_all<float>, pack_all<Bf16>, pack_all<Fp16>},
    .widen_rows = {widen_all_rows<float>, widen_all_rows<Bf16>, widen_all_rows<Fp16>},
    .multiply = multiply_all,
};

[[maybe_unused]] static const bool kRegistered = tests::register_tier(&kFunctions);

}  // namespace flashmha::cpu::FLASHMHA_ISA
