// The distribution that tokens are drawn from, against its definition; the draws, against the
// distribution.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "flashmha/sampling.h"
#include "tests/core/expect_error.h"
#include "tests/model/fixture.h"

namespace flashmha {
namespace {

using model::sample_token;
using model::SamplingOptions;
using model::token_probabilities;
using namespace test;

using Logits = std::vector<float>;
using Probabilities = std::vector<double>;

constexpr float kInf = std::numeric_limits<float>::infinity();

// Normal; in steps of `grid` if it is not 0, so that there are ties.
Logits random_logits(std::size_t count, std::uint64_t seed, float grid = 0.0f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  Logits logits(count);
  for (float& logit : logits) {
    logit = normal(random);
    if (grid > 0.0f) logit = std::round(logit / grid) * grid;
  }
  return logits;
}

Probabilities softmax(const std::vector<double>& scores) {
  const double highest = *std::ranges::max_element(scores);
  Probabilities result;
  double sum = 0.0;
  for (const double score : scores) {
    result.push_back(std::exp(score - highest));
    sum += result.back();
  }
  for (double& p : result)
    p /= sum;
  return result;
}

// The definitions, each in its own pass over scores, token by token.
Probabilities defined_probabilities(const Logits& logits, const std::vector<std::int64_t>& seen,
                                    const SamplingOptions& options) {
  constexpr double kGone = -std::numeric_limits<double>::infinity();
  std::vector<double> scores(logits.begin(), logits.end());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (std::ranges::find(seen, static_cast<std::int64_t>(i)) == seen.end()) continue;
    scores[i] *= scores[i] < 0 ? options.repetition_penalty : 1.0 / options.repetition_penalty;
  }
  for (double& score : scores)
    score /= options.temperature;
  if (options.top_k > 0) {
    std::vector<double> kept = scores;
    for (std::size_t i = 0; i < scores.size(); ++i) {
      const auto above =
          std::ranges::count_if(scores, [&](double other) { return other > scores[i]; });
      if (above >= options.top_k) kept[i] = kGone;
    }
    scores = kept;
  }
  if (options.top_p < 1.0) {
    const Probabilities p = softmax(scores);
    std::vector<double> kept = scores;
    for (std::size_t i = 0; i < scores.size(); ++i) {
      double before = 0.0;  // of tokens whose turn is earlier
      bool first = true;
      for (std::size_t j = 0; j < scores.size(); ++j) {
        const bool earlier = p[j] > p[i] || (p[j] == p[i] && j < i);
        if (earlier) before += p[j];
        first = first && !earlier;
      }
      if (!first && before >= options.top_p) kept[i] = kGone;
    }
    scores = kept;
  }
  const Probabilities p = softmax(scores);
  const double highest = *std::ranges::max_element(p);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (p[i] < options.min_p * highest) scores[i] = kGone;
  }
  return softmax(scores);
}

void expect_definition(const Logits& logits, const std::vector<std::int64_t>& seen,
                       const SamplingOptions& options, const std::string& what) {
  const Probabilities expected = defined_probabilities(logits, seen, options);
  const Probabilities actual = token_probabilities(logits, seen, options);
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i] > 0.0, expected[i] > 0.0) << what << ", token " << i;
    ASSERT_NEAR(actual[i], expected[i], 1e-6) << what << ", token " << i;
  }
}

TEST(Sampling, every_filter_is_its_definition) {
  for (std::uint64_t round = 0; round < 20; ++round) {
    const std::uint64_t seed = test_seed() + round;
    const Logits logits = random_logits(200, seed);
    const std::vector<std::int64_t> seen = {3, 199, 3, 0, 77, 120};
    expect_definition(logits, {}, {.temperature = 0.7}, "temperature");
    expect_definition(logits, {}, {.temperature = 1.0, .top_k = 17}, "top_k");
    expect_definition(logits, {}, {.temperature = 1.3, .top_p = 0.83}, "top_p");
    expect_definition(logits, {}, {.temperature = 0.9, .min_p = 0.07}, "min_p");
    expect_definition(logits, seen, {.temperature = 1.0, .repetition_penalty = 1.3}, "penalty");
    expect_definition(logits, seen, {.temperature = 1.0, .repetition_penalty = 0.6}, "reward");
    expect_definition(
        logits, seen,
        {.temperature = 1.6, .top_k = 60, .top_p = 0.95, .min_p = 0.02, .repetition_penalty = 1.2},
        "all");
  }
}

// Ties at the edge of a filter: top-k keeps all of them, top-p the first ones. Sums of
// probabilities that are equal in one order of addition only would make the edge of top-p a matter
// of rounding: hence values of top_p between the sums of 16 equal tokens.
TEST(Sampling, ties_are_broken_by_the_documented_rule) {
  for (std::uint64_t round = 0; round < 20; ++round) {
    const Logits logits = random_logits(60, test_seed() + round, 1.0f);
    expect_definition(logits, {}, {.temperature = 1.0, .top_k = 9}, "top_k");
    expect_definition(logits, {}, {.temperature = 2.0, .min_p = 0.1}, "min_p");
  }
  const Logits flat(16, 0.5f);
  const Probabilities p = token_probabilities(flat, {}, {.temperature = 1.0, .top_p = 0.3});
  for (std::size_t i = 0; i < 16; ++i)
    EXPECT_NEAR(p[i], i < 5 ? 0.2 : 0.0, 1e-12) << i;
  EXPECT_EQ(sample_token(flat, {}, {}), 0);
  EXPECT_EQ(sample_token(Logits{1.0f, 3.0f, 3.0f}, {}, {}), 1);
}

// Pearson's statistic of draws against the exact probabilities; fails by chance once in 10^8.
void expect_distribution(const std::map<std::int64_t, int>& counts, const Probabilities& p,
                         int num_draws, const char* what) {
  double statistic = 0.0;
  int degrees = -1;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const auto found = counts.find(static_cast<std::int64_t>(i));
    const double count = found == counts.end() ? 0.0 : found->second;
    if (p[i] == 0.0) {
      EXPECT_EQ(count, 0.0) << what << ", filtered token " << i;
      continue;
    }
    const double expected = p[i] * num_draws;
    ASSERT_GE(expected, 5.0) << "too few draws for the statistic";
    statistic += (count - expected) * (count - expected) / expected;
    ++degrees;
  }
  // The quantile by Wilson & Hilferty (1931), for 5.6 standard deviations.
  const double k = 2.0 / (9.0 * degrees);
  EXPECT_LT(statistic, degrees * std::pow(1.0 - k + 5.6 * std::sqrt(k), 3)) << what;
}

TEST(Sampling, draws_follow_the_probabilities) {
  constexpr int kDraws = 40'000;
  Logits logits = random_logits(24, test_seed());
  for (float& logit : logits)
    logit = std::clamp(logit, -2.5f, 2.5f);
  const SamplingOptions options{
      .temperature = 0.9, .top_k = 20, .top_p = 0.97, .seed = test_seed() + 1};
  const Probabilities p = token_probabilities(logits, {}, options);
  std::map<std::int64_t, int> by_row, by_step;
  std::map<std::int64_t, int> pairs;  // equal tokens at neighbouring steps: is there a memory?
  std::int64_t last = -1;
  int num_equal = 0;
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    ++by_row[sample_token(logits, {}, options, {.row = i, .step = 3})];
    const std::int64_t token = sample_token(logits, {}, options, {.row = 3, .step = i});
    ++by_step[token];
    num_equal += token == last;
    last = token;
  }
  expect_distribution(by_row, p, kDraws, "rows");
  expect_distribution(by_step, p, kDraws, "steps");
  double chance = 0.0;
  for (const double probability : p)
    chance += probability * probability;
  EXPECT_NEAR(num_equal, kDraws * chance, 5.6 * std::sqrt(kDraws * chance * (1.0 - chance)));
}

// floor(65536 u) for u of Philox-4x32-7 as computed by an implementation in Python's integers.
TEST(Sampling, draws_are_the_same_on_every_machine) {
  const Logits flat(1 << 16, 0.0f);
  const auto draw = [&](std::uint64_t seed, std::uint64_t row, std::uint64_t step) {
    return sample_token(flat, {}, {.temperature = 1.0, .seed = seed}, {.row = row, .step = step});
  };
  EXPECT_EQ(draw(0, 0, 0), 3465);
  EXPECT_EQ(draw(1, 0, 0), 30734);
  EXPECT_EQ(draw(1, 1, 0), 38714);
  EXPECT_EQ(draw(1, 0, 1), 33292);
  EXPECT_EQ(draw(0xdeadbeefcafe, std::uint64_t{1} << 40, std::uint64_t{1} << 35), 43160);
}

TEST(Sampling, extreme_options) {
  const Logits logits = random_logits(100, test_seed());
  const auto best = std::ranges::max_element(logits) - logits.begin();
  const auto expect_only_best = [&](const SamplingOptions& options, const char* what) {
    const Probabilities p = token_probabilities(logits, {}, options);
    EXPECT_EQ(p[static_cast<std::size_t>(best)], 1.0) << what;
    EXPECT_EQ(std::accumulate(p.begin(), p.end(), 0.0), 1.0) << what;
    EXPECT_EQ(sample_token(logits, {}, options, {.row = 1, .step = 2}), best) << what;
  };
  expect_only_best({}, "temperature 0");
  expect_only_best({.temperature = 1e-6}, "small temperature");
  expect_only_best({.temperature = std::numeric_limits<double>::denorm_min()}, "least temperature");
  expect_only_best({.temperature = 1.0, .top_k = 1}, "top_k 1");
  expect_only_best({.temperature = 1.0, .top_p = 0.0}, "top_p 0");
  expect_only_best({.temperature = 1.0, .min_p = 1.0}, "min_p 1");
  const Probabilities all = token_probabilities(logits, {}, {.temperature = 1.0});
  EXPECT_EQ(token_probabilities(logits, {}, {.temperature = 1.0, .top_k = 100}), all);
  EXPECT_EQ(token_probabilities(logits, {}, {.temperature = 1.0, .top_k = 1'000'000}), all);
  EXPECT_EQ(token_probabilities(logits, {}, {.temperature = 1.0, .top_p = 1.0}), all);
  const Probabilities flat = token_probabilities(logits, {}, {.temperature = 1e300});
  for (const double p : flat)
    EXPECT_NEAR(p, 0.01, 1e-12);
  EXPECT_EQ(sample_token(Logits{-3.0f}, {}, {.temperature = 1.0}), 0);
}

TEST(Sampling, tokens_at_minus_infinity_never_come) {
  Logits logits = random_logits(50, test_seed());
  for (std::size_t i = 0; i < logits.size(); i += 2)
    logits[i] = -kInf;
  for (std::uint64_t step = 0; step < 300; ++step) {
    EXPECT_EQ(sample_token(logits, {}, {.temperature = 3.0, .top_k = 40}, {.step = step}) % 2, 1);
  }
}

TEST(Sampling, RefusesBadInput) {
  constexpr auto kBad = ErrorCode::invalid_argument;
  const Logits logits(4, 0.0f);
  const auto refuse = [&](const SamplingOptions& options, const std::string& message) {
    expect_error(kBad, {message}, [&] { check_sampling(options); });
    expect_error(kBad, {message}, [&] { sample_token(logits, {}, options); });
    expect_error(kBad, {message}, [&] { token_probabilities(logits, {}, options); });
  };
  const double nan = std::nan("");
  refuse({.temperature = -0.5}, "temperature must be finite and not negative; got -0.5");
  refuse({.temperature = nan}, "temperature must be finite and not negative; got nan");
  refuse({.top_k = -1}, "top_k must not be negative; got -1");
  refuse({.top_p = 1.5}, "top_p must be in [0, 1]; got 1.5");
  refuse({.top_p = nan}, "top_p must be in [0, 1]; got nan");
  refuse({.min_p = -0.1}, "min_p must be in [0, 1]; got -0.1");
  refuse({.repetition_penalty = 0.0}, "repetition_penalty must be positive and finite; got 0");

  for (const double temperature : {0.0, 1.0}) {
    const SamplingOptions options{.temperature = temperature};
    expect_error(kBad, {"logits must be finite or -inf; token 1 has nan"}, [&] {
      sample_token(Logits{0.0f, std::nanf(""), 1.0f}, {}, options);
    });
    expect_error(kBad, {"logits must be finite or -inf; token 2 has inf"}, [&] {
      sample_token(Logits{0.0f, 3.0f, kInf}, {}, options);
    });
    expect_error(kBad, {"one of the 2 logits must be above -inf"}, [&] {
      sample_token(Logits{-kInf, -kInf}, {}, options);
    });
    expect_error(kBad, {"there must be logits"}, [&] { sample_token({}, {}, options); });
  }
  const std::vector<std::int64_t> outside = {4};
  expect_error(kBad, {"tokens must be in [0, 4); got 4"},
               [&] { sample_token(logits, outside, {.repetition_penalty = 2.0}); });
}

}  // namespace
}  // namespace flashmha
