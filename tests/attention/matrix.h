// Small float matrices for the plain implementation.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "flashmha/dtype.h"

namespace flashmha::tests {

// The nearest value of the dtype.
inline float rounded(DType dtype, float value) {
  if (dtype == DType::bfloat16) return static_cast<float>(BFloat16(value));
  if (dtype == DType::float16) return static_cast<float>(Float16(value));
  return value;
}
inline float rounded(DType dtype, double value) {
  return rounded(dtype, static_cast<float>(value));
}

struct Matrix {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<float> values;

  Matrix(std::int64_t num_rows, std::int64_t num_columns)
      : rows(num_rows), columns(num_columns), values(static_cast<std::size_t>(rows * columns)) {}
  float& operator()(std::int64_t i, std::int64_t j) {
    return values[static_cast<std::size_t>(i * columns + j)];
  }
  float operator()(std::int64_t i, std::int64_t j) const {
    return values[static_cast<std::size_t>(i * columns + j)];
  }
  float* row(std::int64_t i) { return values.data() + i * columns; }
  const float* row(std::int64_t i) const { return values.data() + i * columns; }
};

inline Matrix transposed(const Matrix& a) {
  Matrix result(a.columns, a.rows);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.columns; ++j)
      result(j, i) = a(i, j);
  }
  return result;
}

// a b, sums in float, the result rounded. Zeros of a are skipped: hidden keys may be poisoned.
inline Matrix product(DType dtype, const Matrix& a, const Matrix& b) {
  Matrix result(a.rows, b.columns);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t k = 0; k < a.columns; ++k) {
      const float factor = a(i, k);
      if (factor == 0.0f) continue;
      const float* from = b.row(k);
      float* to = result.row(i);
      for (std::int64_t j = 0; j < b.columns; ++j)
        to[j] += factor * from[j];
    }
    for (std::int64_t j = 0; j < b.columns; ++j)
      result(i, j) = rounded(dtype, result(i, j));
  }
  return result;
}

template <class F>
inline Matrix map(Matrix a, F f) {
  for (float& value : a.values)
    value = f(value);
  return a;
}
inline Matrix magnitudes(const Matrix& a) {
  return map(a, [](float value) { return std::abs(value); });
}
inline Matrix squares(const Matrix& a) {
  return map(a, [](float value) { return value * value; });
}
inline double largest(const Matrix& a) {
  float most = 0;
  for (const float value : a.values)
    most = std::max(most, std::abs(value));
  return static_cast<double>(most);
}

}  // namespace flashmha::tests
