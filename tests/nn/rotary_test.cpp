// Rotary tables against the published formulas, written out anew in double.
#include <cmath>
#include <numbers>

#include "tests/nn/support.h"

namespace flashmha::tests {
namespace {

using nn::RotaryConfig;
using nn::RotaryEmbedding;
using nn::RotaryScaling;

constexpr double kTwoPi = 2.0 * std::numbers::pi;

RotaryConfig config_of(RotaryScaling scaling) {
  RotaryConfig config;
  config.head_dim = 32;
  config.rope_theta = 10000.0;
  config.max_position_embeddings = 64;
  config.scaling = scaling;
  return config;
}

// cos and sin of every position and pair, given the frequency of a pair.
template <class Frequency>
void expect_tables(const RotaryConfig& config, std::int64_t positions, double factor,
                   Frequency frequency) {
  RotaryEmbedding rotary(config);
  const ops::RotaryTables tables = rotary.tables(positions);
  ASSERT_GE(tables.cos.size(0), positions);
  Values cos, sin;
  for (std::int64_t p = 0; p < positions; ++p) {
    for (std::int64_t i = 0; i < config.rotary_dim() / 2; ++i) {
      const double angle = static_cast<double>(p) * frequency(static_cast<double>(i));
      cos.push_back(factor * std::cos(angle));
      sin.push_back(factor * std::sin(angle));
    }
  }
  expect_near(tables.cos.slice(0, 0, positions), cos, 1e-6, "cos");
  expect_near(tables.sin.slice(0, 0, positions), sin, 1e-6, "sin");
}

double plain_frequency(double i, double dim, double theta = 10000.0) {
  return std::exp(-std::log(theta) * 2.0 * i / dim);
}

TEST(Rotary, Default) {
  expect_tables(config_of(RotaryScaling::none), 100000, 1.0,
                [](double i) { return plain_frequency(i, 32); });
}

TEST(Rotary, PartialRotatesTheFirstPart) {
  RotaryConfig config = config_of(RotaryScaling::none);
  config.partial_rotary_factor = 0.4;  // floor(12.8) = 12
  EXPECT_EQ(config.rotary_dim(), 12);
  expect_tables(config, 50, 1.0, [](double i) { return plain_frequency(i, 12); });
}

TEST(Rotary, LinearDividesPositions) {
  RotaryConfig config = config_of(RotaryScaling::linear);
  config.factor = 4.0;
  expect_tables(config, 300, 1.0, [](double i) { return plain_frequency(i, 32) / 4.0; });
}

TEST(Rotary, DynamicNtkStretchesTheBase) {
  RotaryConfig config = config_of(RotaryScaling::dynamic_ntk);
  config.factor = 2.0;
  expect_tables(config, 64, 1.0, [](double i) { return plain_frequency(i, 32); });
  const double theta = 10000.0 * std::pow(2.0 * 200.0 / 64.0 - 1.0, 32.0 / 30.0);
  expect_tables(config, 200, 1.0, [&](double i) { return plain_frequency(i, 32, theta); });
}

TEST(Rotary, DynamicNtkRemembersTheLongestUntilShortAgain) {
  RotaryConfig config = config_of(RotaryScaling::dynamic_ntk);
  config.factor = 2.0;
  RotaryEmbedding rotary(config);
  const auto second_frequency = [&](std::int64_t positions) {
    const ops::RotaryTables tables = rotary.tables(positions);
    return std::acos(static_cast<double>(tables.cos.as<float>()[16 + 1]));  // position 1, pair 1
  };
  const double original = second_frequency(10);
  const double stretched = second_frequency(200);
  EXPECT_LT(stretched, original - 0.01);
  EXPECT_EQ(second_frequency(100), stretched);
  EXPECT_EQ(second_frequency(64), stretched);  // the trained length itself is not shorter
  EXPECT_EQ(second_frequency(63), original);
}

TEST(Rotary, YarnMixesByTurns) {
  RotaryConfig config = config_of(RotaryScaling::yarn);
  config.factor = 4.0;
  config.original_max_position_embeddings = 512;
  config.beta_fast = 32.0;
  config.beta_slow = 1.0;
  // Pair that turns r times over the trained length: dim ln(L / (2 pi r)) / (2 ln theta).
  const auto pair_of = [](double turns) {
    return 32.0 * std::log(512.0 / (kTwoPi * turns)) / (2.0 * std::log(10000.0));
  };
  const double low = std::max(std::floor(pair_of(32.0)), 0.0);
  const double high = std::min(std::ceil(pair_of(1.0)), 31.0);
  const double attention = 0.1 * std::log(4.0) + 1.0;
  EXPECT_DOUBLE_EQ(nn::rotary_attention_scaling(config), attention);
  expect_tables(config, 600, attention, [&](double i) {
    const double slowed = i <= low ? 0.0 : i >= high ? 1.0 : (i - low) / (high - low);
    return plain_frequency(i, 32) * (1.0 - slowed) + plain_frequency(i, 32) / 4.0 * slowed;
  });
}

TEST(Rotary, YarnAttentionFactors) {
  RotaryConfig config = config_of(RotaryScaling::yarn);
  config.factor = 40.0;
  config.mscale = 1.0;
  config.mscale_all_dim = 0.5;
  const double log_factor = std::log(40.0);
  EXPECT_DOUBLE_EQ(nn::rotary_attention_scaling(config),
                   (0.1 * log_factor + 1.0) / (0.05 * log_factor + 1.0));
  config.attention_factor = 1.25;
  EXPECT_DOUBLE_EQ(nn::rotary_attention_scaling(config), 1.25);
}

TEST(Rotary, Llama3ScalesByWavelength) {
  RotaryConfig config = config_of(RotaryScaling::llama3);
  config.rope_theta = 500000.0;
  config.factor = 8.0;
  config.low_freq_factor = 1.0;
  config.high_freq_factor = 4.0;
  config.original_max_position_embeddings = 256;
  int kept = 0, mixed = 0, slowed = 0;
  expect_tables(config, 400, 1.0, [&](double i) {
    const double frequency = plain_frequency(i, 32, 500000.0);
    const double wavelength = kTwoPi / frequency;
    if (wavelength < 256.0 / 4.0) return ++kept, frequency;
    if (wavelength > 256.0 / 1.0) return ++slowed, frequency / 8.0;
    const double smooth = (256.0 / wavelength - 1.0) / (4.0 - 1.0);
    return ++mixed, (1.0 - smooth) * frequency / 8.0 + smooth * frequency;
  });
  EXPECT_TRUE(kept > 0 && mixed > 0 && slowed > 0) << "all three ranges are tested";
}

TEST(Rotary, SaysWhatIsWrong) {
  RotaryConfig odd = config_of(RotaryScaling::none);
  odd.head_dim = 7;
  expect_error([&] { RotaryEmbedding{odd}; }, {"[RotaryEmbedding]", "even", "got 7"});
  RotaryConfig small = config_of(RotaryScaling::linear);
  small.factor = 0.5;
  expect_error([&] { RotaryEmbedding{small}; }, {"[RotaryEmbedding]", "factor (0.5)"});
}

}  // namespace
}  // namespace flashmha::tests
