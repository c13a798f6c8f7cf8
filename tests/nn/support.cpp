#include "tests/nn/support.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "core/visit.h"

namespace flashmha::tests {

Random::Random() {
  static std::uint64_t num_objects = 0;
  engine_.seed(test::test_seed() + num_objects++);
}

Tensor Random::normal(const Shape& shape, DType dtype, double deviation) {
  const Tensor drawn = Tensor::empty(shape, DType::float32);
  std::normal_distribution<double> distribution(0.0, deviation);
  for (std::int64_t i = 0; i < drawn.numel(); ++i) {
    drawn.as<float>()[i] = static_cast<float>(distribution(engine_));
  }
  return cast(drawn, dtype);
}

Tensor Random::integers(const Shape& shape, std::int64_t bound, DType dtype) {
  const Tensor drawn = Tensor::empty(shape, DType::int64);
  for (std::int64_t i = 0; i < drawn.numel(); ++i)
    drawn.as<std::int64_t>()[i] = below(bound);
  return cast(drawn, dtype);
}

std::int64_t Random::below(std::int64_t bound) {
  return std::uniform_int_distribution<std::int64_t>(0, bound - 1)(engine_);
}

Tensor poisoned(const Shape& shape, DType dtype) {
  Tensor tensor = Tensor::empty(shape, dtype);
  fill(tensor, std::numeric_limits<double>::quiet_NaN());
  return tensor;
}

Values values_of(const TensorView& tensor) {
  Values values;
  if (!tensor.defined() || tensor.numel() == 0) return values;
  if (tensor.dtype == DType::boolean || !is_floating(tensor.dtype)) {
    const Tensor wide = tensor.dtype == DType::boolean ? clone(tensor) : cast(tensor, DType::int64);
    for (std::int64_t i = 0; i < wide.numel(); ++i) {
      values.push_back(tensor.dtype == DType::boolean
                           ? double(wide.as<bool>()[i])
                           : static_cast<double>(wide.as<std::int64_t>()[i]));
    }
    return values;
  }
  const Tensor wide = cast(tensor, DType::float64);
  return {wide.as<double>(), wide.as<double>() + wide.numel()};
}

Values numeric_gradient(const std::function<double(const Values&)>& function, Values at) {
  constexpr double kStep = 1e-5;
  Values gradient(at.size());
  for (std::size_t i = 0; i < at.size(); ++i) {
    const double center = at[i];
    at[i] = center + kStep;
    const double above = function(at);
    at[i] = center - kStep;
    gradient[i] = (above - function(at)) / (2.0 * kStep);
    at[i] = center;
  }
  return gradient;
}

double weighted_sum(const TensorView& weights, const Values& values) {
  const Values w = values_of(weights);
  EXPECT_EQ(w.size(), values.size());
  double sum = 0.0;
  for (std::size_t i = 0; i < w.size(); ++i)
    sum += w[i] * values[i];
  return sum;
}

void expect_near(const Values& actual, const Values& expected, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  std::size_t wrong = 0;
  std::string first;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double a = actual[i];
    const double e = expected[i];
    const bool finite = std::isfinite(a) && std::isfinite(e);
    const bool ok = finite ? std::abs(a - e) <= tolerance * std::max(1.0, std::abs(e))
                           : (std::isnan(a) && std::isnan(e)) || a == e;
    if (!ok && wrong++ == 0) first = fmt::format("element {}: {} instead of {}", i, a, e);
  }
  EXPECT_EQ(wrong, 0u) << what << ": " << wrong << " of " << actual.size() << " wrong, " << first;
}

void expect_near(const TensorView& actual, const Values& expected, double tolerance,
                 const std::string& what) {
  expect_near(values_of(actual), expected, tolerance, what);
}

void expect_near(const TensorView& actual, const TensorView& expected, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(to_string(actual.shape), to_string(expected.shape)) << what;
  expect_near(values_of(actual), values_of(expected), tolerance, what);
}

void expect_same_bits(const TensorView& actual, const TensorView& expected,
                      const std::string& what) {
  ASSERT_EQ(to_string(actual), to_string(expected)) << what;
  const Tensor a = clone(actual);
  const Tensor e = clone(expected);
  EXPECT_EQ(std::memcmp(a.view().data, e.view().data, a.view().bytes()), 0)
      << what << ": bits differ";
}

bool all_zero(const TensorView& tensor) {
  const Values values = values_of(tensor);
  return std::all_of(values.begin(), values.end(), [](double value) { return value == 0.0; });
}

Tensor mask_of(const std::vector<std::string>& rows) {
  const auto length = static_cast<std::int64_t>(rows.front().size());
  Tensor mask = Tensor::empty({static_cast<std::int64_t>(rows.size()), length}, DType::boolean);
  bool* to = mask.as<bool>();
  for (const std::string& row : rows) {
    for (const char c : row)
      *to++ = c == '1';
  }
  return mask;
}

Tensor int32_matrix(const std::vector<std::vector<std::int32_t>>& rows) {
  std::vector<std::int32_t> flat;
  for (const auto& row : rows)
    flat.insert(flat.end(), row.begin(), row.end());
  return Tensor::from(
      std::span<const std::int32_t>(flat),
      {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(rows.front().size())});
}

}  // namespace flashmha::tests
