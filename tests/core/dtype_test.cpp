#include "flashmha/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace flashmha {
namespace {

// The nearest value of a 16-bit type by search over its neighbours, in double: independent of the
// bit arithmetic under test.
template <class T>
double value_of(std::uint16_t bits) {
  T number;
  number.bits = bits;
  return static_cast<double>(static_cast<float>(number));
}

template <class T>
void expect_nearest(float value) {
  const T rounded(value);
  const double got = value_of<T>(rounded.bits);
  if (std::isinf(got)) return;
  const double error = std::abs(got - static_cast<double>(value));
  for (const int step : {-1, 1}) {
    const auto neighbour = static_cast<std::uint16_t>(rounded.bits + step);
    const double other = value_of<T>(neighbour);
    if (!std::isfinite(other)) continue;
    const double other_error = std::abs(other - static_cast<double>(value));
    ASSERT_LE(error, other_error) << value << " became " << got << ", " << other << " is nearer";
    if (error == other_error && other != got) {
      ASSERT_EQ(rounded.bits & 1u, 0u) << value << " is a tie and must become even";
    }
  }
}

template <class T>
void expect_all_patterns_survive() {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    T number;
    number.bits = static_cast<std::uint16_t>(bits);
    const float wide = static_cast<float>(number);
    const T back(wide);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(back))) << bits;
    } else {
      EXPECT_EQ(back.bits, number.bits);
    }
  }
}

TEST(DType, EveryPatternSurvivesWideningAndNarrowing) {
  expect_all_patterns_survive<BFloat16>();
  expect_all_patterns_survive<Float16>();
}

TEST(DType, NarrowingRoundsToNearestEven) {
  std::mt19937 random(1);
  std::uniform_int_distribution<std::uint32_t> any;
  for (int i = 0; i < 200000; ++i) {
    const auto value = std::bit_cast<float>(any(random));
    if (!std::isfinite(value)) continue;
    expect_nearest<BFloat16>(value);
    if (std::abs(value) < 65504.0f) expect_nearest<Float16>(value);
  }
  for (std::uint32_t bits = 0; bits < 0x7C00u; ++bits) {  // exact ties between float16 neighbours
    const double low = value_of<Float16>(static_cast<std::uint16_t>(bits));
    const double high = value_of<Float16>(static_cast<std::uint16_t>(bits + 1));
    if (std::isfinite(high)) expect_nearest<Float16>(static_cast<float>((low + high) / 2));
  }
}

TEST(DType, OverflowBecomesInfinityAndNanStaysNan) {
  EXPECT_EQ(Float16(65519.0f).bits, 0x7BFF);
  EXPECT_EQ(Float16(65520.0f).bits, 0x7C00);
  EXPECT_EQ(Float16(-1e30f).bits, 0xFC00);
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::max()).bits, 0x7F80);
  EXPECT_EQ(Float16(1e-10f).bits, 0);
  for (const std::uint32_t pattern : {0x7F800001u, 0xFFFFFFFFu, 0x7FC00000u}) {
    const auto nan = std::bit_cast<float>(pattern);
    EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(nan))));
    EXPECT_TRUE(std::isnan(static_cast<float>(Float16(nan))));
  }
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(dtype_bytes(DType::bfloat16), 2u);
  EXPECT_EQ(dtype_bytes(DType::float64), 8u);
  EXPECT_EQ(dtype_bytes(DType::boolean), 1u);
  EXPECT_STREQ(dtype_name(DType::float16), "float16");
  EXPECT_TRUE(is_floating(DType::bfloat16));
  EXPECT_FALSE(is_floating(DType::int32));
}

}  // namespace
}  // namespace flashmha
