// The elementary functions against double precision, over a net of all floats.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "tests/cpu/tier_functions.h"

namespace flashmha::tests {
namespace {

constexpr float kSmallestNormal = std::numeric_limits<float>::min();

// Every 251st of the 2^32 bit patterns (a prime, so that all exponents and mantissas mix).
const std::vector<float>& net() {
  static const std::vector<float> points = [] {
    std::vector<float> x;
    for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 251) {
      x.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
    }
    return x;
  }();
  return points;
}

double unit_in_last_place(double value) {
  const int exponent = std::ilogb(std::max(std::fabs(value), double{kSmallestNormal}));
  return std::ldexp(1.0, exponent - 23);
}

using Map = void (*)(const float*, float*, int64_t);

// Largest error in units in the last place over the points where exact(x) is a normal float. Where
// it rounds to infinity or is NaN the result must be so too; where it is below the normal floats
// the result must be between 0 and twice the smallest of them.
double largest_error(Map function, double (*exact)(double)) {
  const std::vector<float>& x = net();
  std::vector<float> y(x.size(), NAN);
  function(x.data(), y.data(), static_cast<int64_t>(x.size()));
  double largest = 0;
  float worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = exact(static_cast<double>(x[i]));
    const float rounded = static_cast<float>(want);
    if (std::isnan(want) || std::isinf(rounded)) {
      EXPECT_TRUE(std::isnan(want) ? std::isnan(y[i]) : y[i] == rounded) << x[i] << ": " << y[i];
    } else if (std::fabs(want) < kSmallestNormal) {
      EXPECT_LT(std::fabs(y[i] - want), kSmallestNormal) << x[i];
    } else {
      const double error = std::fabs(y[i] - want) / unit_in_last_place(want);
      if (!(error <= largest)) largest = error, worst = x[i];
    }
    if (testing::Test::HasFailure()) break;
  }
  testing::Test::RecordProperty("largest_error_ulp", std::to_string(largest));
  printf("largest error %.3f ulp, at %g\n", largest, static_cast<double>(worst));
  return largest;
}

float value_at(Map function, float x) {
  float y = -7.0f;
  function(&x, &y, 1);
  return y;
}

class VectorMath : public testing::TestWithParam<const TierFunctions*> {};

TEST_P(VectorMath, exp2) {
  const Map exp2 = GetParam()->exp2;
  const bool has_fma = std::string(GetParam()->name) != "portable";
  EXPECT_LE(largest_error(exp2, std::exp2), has_fma ? 1.0 : 1.5);
  for (int n = -126; n < 128; ++n) {
    EXPECT_EQ(value_at(exp2, static_cast<float>(n)), std::ldexp(1.0f, n));
  }
  EXPECT_EQ(value_at(exp2, 128.0f), INFINITY);
  EXPECT_EQ(value_at(exp2, INFINITY), INFINITY);
  EXPECT_EQ(value_at(exp2, std::nextafter(-126.0f, -200.0f)), 0.0f);
  EXPECT_EQ(value_at(exp2, -INFINITY), 0.0f);
  EXPECT_EQ(value_at(exp2, -0.0f), 1.0f);
}

TEST_P(VectorMath, exp) {
  const Map exp = GetParam()->exp;
  EXPECT_LE(largest_error(exp, std::exp), 1.5);
  EXPECT_EQ(value_at(exp, 0.0f), 1.0f);
  EXPECT_EQ(value_at(exp, INFINITY), INFINITY);
  EXPECT_EQ(value_at(exp, -INFINITY), 0.0f);
}

TEST_P(VectorMath, tanh) {
  const Map tanh = GetParam()->tanh;
  EXPECT_LE(largest_error(tanh, std::tanh), 2.0);
  EXPECT_EQ(value_at(tanh, INFINITY), 1.0f);
  EXPECT_EQ(value_at(tanh, -INFINITY), -1.0f);
  EXPECT_TRUE(std::signbit(value_at(tanh, -0.0f)));
}

TEST_P(VectorMath, log) {
  const Map log = GetParam()->log;
  EXPECT_LE(largest_error(log, std::log), 1.5);
  EXPECT_EQ(value_at(log, 1.0f), 0.0f);
  EXPECT_EQ(value_at(log, 0.0f), -INFINITY);
  EXPECT_EQ(value_at(log, -0.0f), -INFINITY);
  EXPECT_EQ(value_at(log, INFINITY), INFINITY);
  EXPECT_TRUE(std::isnan(value_at(log, -1.0f)));
}

TEST_P(VectorMath, nan_stays_nan_whatever_its_payload) {
  const TierFunctions& tier = *GetParam();
  for (const uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0x7fffffffu, 0xff800123u}) {
    for (const Map function : {tier.exp2, tier.exp, tier.tanh, tier.log}) {
      EXPECT_TRUE(std::isnan(value_at(function, std::bit_cast<float>(bits)))) << bits;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, VectorMath, testing::ValuesIn(runnable_tiers()),
                         [](const auto& tier) { return std::string(tier.param->name); });

}  // namespace
}  // namespace flashmha::tests
