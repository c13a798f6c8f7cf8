// Conversions, tails and reductions of the vector layer, on every tier that this machine runs.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "flashmha/dtype.h"
#include "tests/cpu/tier_functions.h"

namespace flashmha::tests {
namespace {

constexpr int kBf16 = 1;
constexpr int kFp16 = 2;
constexpr int kPatterns = 1 << 16;
constexpr uint16_t kInfinity[] = {0, 0x7f80, 0x7c00};

// The value of a 16-bit pattern by the definition of the format, in double; infinity's pattern
// reads as the next power of two, which is what rounding to it goes by.
double value_of(int storage, int pattern) {
  const int mantissa_bits = storage == kBf16 ? 7 : 10;
  const int bias = storage == kBf16 ? 127 : 15;
  const int exponent = (pattern & 0x7fff) >> mantissa_bits;
  const int mantissa = pattern & ((1 << mantissa_bits) - 1);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                    : std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  return pattern & 0x8000 ? -magnitude : magnitude;
}

bool is_nan(int storage, int pattern) {
  return (pattern & 0x7fff) > kInfinity[storage];
}

std::vector<uint16_t> narrow(const TierFunctions& tier, int storage, const std::vector<float>& x) {
  std::vector<uint16_t> out(x.size(), 0xdead);
  tier.narrow[storage](x.data(), out.data(), static_cast<int64_t>(x.size()));
  return out;
}

// AVX-512 BF16's instruction takes subnormal floats for zero.
bool flushes(const TierFunctions& tier, int storage, float x) {
  return storage == kBf16 && std::string(tier.name) == "avx512_bf16" &&
         std::fabs(x) < std::numeric_limits<float>::min();
}

class Simd : public testing::TestWithParam<const TierFunctions*> {};

TEST_P(Simd, widens_every_16_bit_pattern_exactly) {
  std::vector<uint16_t> patterns(kPatterns);
  for (int p = 0; p < kPatterns; ++p)
    patterns[static_cast<size_t>(p)] = static_cast<uint16_t>(p);
  for (const int storage : {kBf16, kFp16}) {
    std::vector<float> wide(kPatterns, -7.0f);
    GetParam()->widen[storage](patterns.data(), wide.data(), kPatterns);
    for (int p = 0; p < kPatterns; ++p) {
      const float got = wide[static_cast<size_t>(p)];
      if (is_nan(storage, p)) {
        ASSERT_TRUE(std::isnan(got)) << "storage " << storage << " pattern " << p;
      } else if ((p & 0x7fff) == kInfinity[storage]) {
        ASSERT_TRUE(std::isinf(got) && std::signbit(got) == (p >= 0x8000)) << p;
      } else {
        const float want = static_cast<float>(value_of(storage, p));
        ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want))
            << "storage " << storage << " pattern " << p;
      }
    }
  }
}

TEST_P(Simd, narrows_every_16_bit_value_to_itself) {
  for (const int storage : {kBf16, kFp16}) {
    std::vector<float> values(kPatterns);
    for (int p = 0; p < kPatterns; ++p) {
      float& value = values[static_cast<size_t>(p)];
      value = static_cast<float>(value_of(storage, p));
      if ((p & 0x7fff) == kInfinity[storage]) value = p & 0x8000 ? -INFINITY : INFINITY;
      if (is_nan(storage, p)) value = std::bit_cast<float>(0x7f800001u + static_cast<uint32_t>(p));
    }
    const std::vector<uint16_t> got = narrow(*GetParam(), storage, values);
    for (int p = 0; p < kPatterns; ++p) {
      const auto i = static_cast<size_t>(p);
      if (is_nan(storage, p)) {
        ASSERT_TRUE(is_nan(storage, got[i])) << "storage " << storage << " pattern " << p;
      } else if (flushes(*GetParam(), storage, values[i])) {
        ASSERT_EQ(got[i], p & 0x8000);
      } else {
        ASSERT_EQ(got[i], p) << "storage " << storage;
      }
    }
  }
}

// Between every value and its successor: just below the middle, the middle, just above.
TEST_P(Simd, narrows_to_nearest_and_ties_to_even) {
  for (const int storage : {kBf16, kFp16}) {
    std::vector<float> points;
    std::vector<uint16_t> expected;
    for (int sign : {0, 0x8000}) {
      for (int p = 0; p < kInfinity[storage]; ++p) {
        const double middle = (value_of(storage, p) + value_of(storage, p + 1)) / 2;
        const float m = static_cast<float>(sign ? -middle : middle);
        const int even = p % 2 == 0 ? p : p + 1;
        for (const auto& [x, pattern] :
             {std::pair{std::nextafter(m, 0.0f), p}, std::pair{m, even},
              std::pair{std::nextafter(m, sign ? -INFINITY : INFINITY), p + 1}}) {
          points.push_back(x);
          expected.push_back(static_cast<uint16_t>(pattern | sign));
        }
      }
    }
    const std::vector<uint16_t> got = narrow(*GetParam(), storage, points);
    for (size_t i = 0; i < points.size(); ++i) {
      const bool flushed = flushes(*GetParam(), storage, points[i]);
      ASSERT_EQ(got[i], flushed ? expected[i] & 0x8000 : expected[i])
          << "storage " << storage << " value " << points[i];
    }
  }
}

TEST_P(Simd, narrows_random_bits_as_the_scalar_types_do) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  std::vector<float> x(1 << 20);
  for (float& v : x)
    v = std::bit_cast<float>(static_cast<uint32_t>(random()));
  const std::vector<uint16_t> bf16 = narrow(*GetParam(), kBf16, x);
  const std::vector<uint16_t> fp16 = narrow(*GetParam(), kFp16, x);
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) {
      ASSERT_TRUE(is_nan(kBf16, bf16[i]) && is_nan(kFp16, fp16[i]));
      continue;
    }
    const bool flushed = flushes(*GetParam(), kBf16, x[i]);
    ASSERT_EQ(bf16[i], flushed ? BFloat16(x[i]).bits & 0x8000 : BFloat16(x[i]).bits) << x[i];
    ASSERT_EQ(fp16[i], Float16(x[i]).bits) << x[i];
  }
}

// The *_n forms read and write exactly n elements: the neighbours are NaN on the way in (they must
// not reach the result) and marked on the way out.
TEST_P(Simd, tails_touch_only_their_elements) {
  const TierFunctions& tier = *GetParam();
  for (int n = 0; n <= 2 * tier.lanes; ++n) {
    for (const int storage : {0, kBf16, kFp16}) {
      const auto size = static_cast<size_t>(n + 2 * tier.lanes);
      std::vector<float> in(size, NAN), back(size, 5.0f);
      for (int i = 0; i < n; ++i)
        in[static_cast<size_t>(i)] = static_cast<float>(i + 1);
      std::vector<uint32_t> narrowed(size, 0xabababab);
      tier.narrow[storage](in.data(), narrowed.data(), n);
      const size_t bytes = static_cast<size_t>(n) * (storage == 0 ? 4 : 2);
      const auto* raw = reinterpret_cast<const unsigned char*>(narrowed.data());
      for (size_t b = bytes; b < size * 4; ++b)
        ASSERT_EQ(raw[b], 0xab) << "n " << n;
      tier.widen[storage](narrowed.data(), back.data(), n);
      for (size_t i = 0; i < size; ++i) {
        ASSERT_EQ(back[i], i < static_cast<size_t>(n) ? static_cast<float>(i + 1) : 5.0f)
            << "n " << n << " storage " << storage;
      }
    }
  }
}

TEST_P(Simd, reductions) {
  const TierFunctions& tier = *GetParam();
  for (int top = 0; top < tier.lanes; ++top) {
    std::vector<float> lanes(static_cast<size_t>(tier.lanes));
    for (int i = 0; i < tier.lanes; ++i)
      lanes[static_cast<size_t>(i)] = static_cast<float>(-i - 1);
    lanes[static_cast<size_t>(top)] = 64.0f;
    const int sum = -tier.lanes * (tier.lanes + 1) / 2 + (top + 1) + 64;
    EXPECT_EQ(tier.sum(lanes.data()), static_cast<float>(sum));
    EXPECT_EQ(tier.highest(lanes.data()), 64.0f);
  }
}

INSTANTIATE_TEST_SUITE_P(, Simd, testing::ValuesIn(runnable_tiers()),
                         [](const auto& tier) { return std::string(tier.param->name); });

}  // namespace
}  // namespace flashmha::tests
