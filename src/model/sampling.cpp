// Filters and draws. Weights are unnormalised probabilities, the highest 1: subtracting the highest
// score first keeps every temperature above 0 finite.
#include "flashmha/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "core/check.h"
#include "core/philox.h"

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

// The score that the top_k-th token has.
float top_k_score(std::span<const float> scores, std::int64_t top_k) {
  std::vector<float> sorted(scores.begin(), scores.end());
  const auto last = sorted.begin() + (top_k - 1);
  std::nth_element(sorted.begin(), last, sorted.end(), std::greater<>());
  return *last;
}

// Keeps the most likely tokens until their sum reaches top_p of the total.
void keep_top_p(std::vector<double>& weights, double top_p) {
  struct Candidate {
    double weight;
    std::size_t token;
  };
  std::vector<Candidate> heap;
  double total = 0.0;
  for (std::size_t token = 0; token < weights.size(); ++token) {
    if (weights[token] > 0.0) heap.push_back({weights[token], token});
    total += weights[token];
  }
  const auto less_likely = [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight < b.weight : a.token > b.token;
  };
  std::ranges::make_heap(heap, less_likely);
  std::ranges::fill(weights, 0.0);
  double sum = 0.0;
  for (bool first = true; !heap.empty() && (first || sum < top_p * total); first = false) {
    std::ranges::pop_heap(heap, less_likely);
    const Candidate next = heap.back();
    heap.pop_back();
    weights[next.token] = next.weight;
    sum += next.weight;
  }
}

// With a temperature above 0.
std::vector<double> token_weights(std::span<const float> logits, std::span<const std::int64_t> seen,
                                  const SamplingOptions& options) {
  const std::vector<float> scores = penalised(logits, seen, options);
  const float highest = scores[static_cast<std::size_t>(most_likely(scores))];
  const bool all = options.top_k == 0 || options.top_k >= std::ssize(scores);
  const float lowest = all ? -kInfinity : top_k_score(scores, options.top_k);
  std::vector<double> weights(scores.size(), 0.0);
  for (std::size_t token = 0; token < scores.size(); ++token) {
    if (scores[token] < lowest) continue;
    const double distance = static_cast<double>(scores[token]) - static_cast<double>(highest);
    weights[token] = std::exp(distance / options.temperature);
  }
  if (options.top_p < 1.0) keep_top_p(weights, options.top_p);
  for (double& weight : weights) {
    if (weight < options.min_p) weight = 0.0;
  }
  return weights;
}

// In [0, 1), 53 bits.
double uniform(std::uint64_t seed, DrawPosition position) {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
  const PhiloxBlock bits =
      philox4x32({low(position.step), high(position.step), low(position.row), high(position.row)},
                 low(seed), high(seed));
  const std::uint64_t wide = (std::uint64_t{bits[1]} << 32) | bits[0];
  return static_cast<double>(wide >> 11) * 0x1p-53;
}

double sum_of(std::span<const double> values) {
  double sum = 0.0;
  for (const double value : values)
    sum += value;
  return sum;
}

}  // namespace

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
  std::vector<double> probabilities = token_weights(logits, seen, options);
  const double total = sum_of(probabilities);
  for (double& probability : probabilities)
    probability /= total;
  return probabilities;
}

std::int64_t sample_token(std::span<const float> logits, std::span<const std::int64_t> seen,
                          const SamplingOptions& options, DrawPosition position) {
  check_sampling(options);
  if (options.temperature == 0.0) return most_likely(penalised(logits, seen, options));
  const std::vector<double> weights = token_weights(logits, seen, options);
  const double target = uniform(options.seed, position) * sum_of(weights);
  double sum = 0.0;
  std::int64_t token = 0;
  for (std::int64_t i = 0; i < std::ssize(weights) && sum <= target; ++i) {
    const double weight = weights[static_cast<std::size_t>(i)];
    if (weight > 0.0) token = i;
    sum += weight;
  }
  return token;
}

}  // namespace flashmha::model
