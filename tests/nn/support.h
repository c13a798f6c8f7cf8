// What the tests of operations and layers share: fresh random tensors, double-precision values,
// numeric gradients, comparisons.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "flashmha/nn.h"
#include "tests/core/expect_error.h"
#include "tests/seed.h"

namespace flashmha::tests {

using test::expect_error;

// Numbers that follow from the program's seed; each object of a program draws its own.
class Random {
 public:
  Random();

  // Normal values, drawn in float32 and rounded to dtype.
  Tensor normal(const Shape& shape, DType dtype = DType::float32, double deviation = 1.0);
  Tensor integers(const Shape& shape, std::int64_t bound, DType dtype = DType::int32);
  std::int64_t below(std::int64_t bound);

 private:
  std::mt19937_64 engine_;
};

// A tensor of NaNs: what outputs are before a run.
Tensor poisoned(const Shape& shape, DType dtype = DType::float32);

using Values = std::vector<double>;

// The elements in row-major order.
Values values_of(const TensorView& tensor);

// Central differences of a scalar function.
Values numeric_gradient(const std::function<double(const Values&)>& function, Values at);

// sum(weights * values): turns any output into a loss.
double weighted_sum(const TensorView& weights, const Values& values);

// Inf and NaN by position first, then |actual - expected| <= tolerance * max(1, |expected|).
void expect_near(const Values& actual, const Values& expected, double tolerance,
                 const std::string& what);
void expect_near(const TensorView& actual, const Values& expected, double tolerance,
                 const std::string& what);
void expect_near(const TensorView& actual, const TensorView& expected, double tolerance,
                 const std::string& what);

void expect_same_bits(const TensorView& actual, const TensorView& expected,
                      const std::string& what);

// True if every element is exactly 0.
bool all_zero(const TensorView& tensor);

// boolean [rows.size(), length] from rows of '0' and '1'.
Tensor mask_of(const std::vector<std::string>& rows);

Tensor int32_matrix(const std::vector<std::vector<std::int32_t>>& rows);

// Random weights of a layer: matrices with variance 1 / inputs, vectors around their value.
template <class Layer>
void randomise(Layer& layer, Random& random) {
  layer.visit("", [&](const std::string&, nn::Parameter& parameter) {
    const TensorView value = parameter.value;
    const double deviation = value.rank() == 2 ? 1.0 / std::sqrt(double(value.size(1))) : 0.3;
    copy(random.normal(value.shape, DType::float32, deviation), value);
  });
}

// Copies all parameters of one layer into another, converting the dtype.
template <class From, class To>
void copy_parameters(From& from, To& to) {
  std::vector<TensorView> values;
  from.visit("", [&](const std::string&, nn::Parameter& p) { values.push_back(p.value); });
  std::size_t i = 0;
  to.visit("", [&](const std::string&, nn::Parameter& p) { copy(values[i++], p.value); });
}

// Runs body with 1 thread and with many.
template <class Body>
void with_threads(int count, Body body) {
  set_num_threads(count);
  body();
  set_num_threads(0);
}

}  // namespace flashmha::tests
