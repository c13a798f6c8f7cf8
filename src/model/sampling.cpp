// One row of logits on the host: penalties, checks and random numbers; the rest is ops::sample.
#include "flashmha/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/check.h"
#include "core/philox.h"
#include "model/draw.h"

namespace flashmha::model {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> penalised(std::span<const float> logits, std::span<const std::int64_t> seen,
                             const SamplingOptions& options) {
  std::vector<float> scores(logits.begin(), logits.end());
  penalise_repetition(scores, seen, options.repetition_penalty);
  return scores;
}

// The first of the highest scores.
std::int64_t most_likely(std::span<const float> scores) {
  check(!scores.empty(), "[sample_token] there must be logits to choose from; got none");
  for (std::size_t token = 0; token < scores.size(); ++token) {
    check(scores[token] < kInfinity,
          "[sample_token] logits must be finite or -inf; token {} has {}", token, scores[token]);
  }
  const auto best = std::ranges::max_element(scores);
  check(*best > -kInfinity, "[sample_token] one of the {} logits must be above -inf",
        scores.size());
  return best - scores.begin();
}

// Draws a token of one row with a temperature above 0.
std::int64_t draw(std::span<const float> logits, std::span<const std::int64_t> seen,
                  const SamplingOptions& options, double place, const TensorView& weights = {}) {
  std::vector<float> scores = penalised(logits, seen, options);
  (void)most_likely(scores);  // throws unless there is one to draw
  const Shape shape{1, std::ssize(scores)};
  std::int32_t token = 0;
  ops::sample(view_of(scores.data(), shape), filters_of(options), view_of(&place, {1}),
              view_of(&token, {1}), weights);
  return token;
}

}  // namespace

double uniform_draw(std::uint64_t seed, DrawPosition position) {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
  const PhiloxBlock bits =
      philox4x32({low(position.step), high(position.step), low(position.row), high(position.row)},
                 low(seed), high(seed));
  const std::uint64_t wide = (std::uint64_t{bits[1]} << 32) | bits[0];
  return static_cast<double>(wide >> 11) * 0x1p-53;
}

ops::SampleOptions filters_of(const SamplingOptions& options) {
  return {.temperature = options.temperature,
          .top_k = options.top_k,
          .top_p = options.top_p,
          .min_p = options.min_p};
}

void check_sampling(const SamplingOptions& options) {
  check(options.temperature >= 0.0 && std::isfinite(options.temperature),
        "[SamplingOptions] temperature must be finite and not negative; got {}",
        options.temperature);
  check(options.top_k >= 0, "[SamplingOptions] top_k must not be negative; got {}", options.top_k);
  check(options.top_p >= 0.0 && options.top_p <= 1.0,
        "[SamplingOptions] top_p must be in [0, 1]; got {}", options.top_p);
  check(options.min_p >= 0.0 && options.min_p <= 1.0,
        "[SamplingOptions] min_p must be in [0, 1]; got {}", options.min_p);
  check(options.repetition_penalty > 0.0 && std::isfinite(options.repetition_penalty),
        "[SamplingOptions] repetition_penalty must be positive and finite; got {}",
        options.repetition_penalty);
}

void penalise_repetition(std::span<float> scores, std::span<const std::int64_t> seen,
                         double repetition_penalty) {
  if (repetition_penalty == 1.0) return;
  std::vector<std::int64_t> tokens(seen.begin(), seen.end());
  std::ranges::sort(tokens);
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  const auto penalty = static_cast<float>(repetition_penalty);
  for (const std::int64_t token : tokens) {
    check(token >= 0 && token < std::ssize(scores),
          "[penalise_repetition] tokens must be in [0, {}); got {}", scores.size(), token);
    float& score = scores[static_cast<std::size_t>(token)];
    score = score < 0.0f ? score * penalty : score / penalty;
  }
}

std::vector<double> token_probabilities(std::span<const float> logits,
                                        std::span<const std::int64_t> seen,
                                        const SamplingOptions& options) {
  check_sampling(options);
  if (options.temperature == 0.0) {
    std::vector<double> probabilities(logits.size(), 0.0);
    const std::int64_t token = most_likely(penalised(logits, seen, options));
    probabilities[static_cast<std::size_t>(token)] = 1.0;
    return probabilities;
  }
  std::vector<double> probabilities(logits.size());
  draw(logits, seen, options, 0.0, view_of(probabilities.data(), {1, std::ssize(logits)}));
  const double total = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
  for (double& probability : probabilities)
    probability /= total;
  return probabilities;
}

std::int64_t sample_token(std::span<const float> logits, std::span<const std::int64_t> seen,
                          const SamplingOptions& options, DrawPosition position) {
  check_sampling(options);
  if (options.temperature == 0.0) return most_likely(penalised(logits, seen, options));
  return draw(logits, seen, options, uniform_draw(options.seed, position));
}

}  // namespace flashmha::model
