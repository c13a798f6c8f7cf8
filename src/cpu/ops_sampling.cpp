// Choosing tokens: filters and draws. Weights are unnormalised probabilities, the highest 1:
// subtracting the highest score first keeps every temperature above 0 finite.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "core/parallel.h"
#include "cpu/ops.h"

namespace flashmha::cpu::ops {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The score that the top_k-th token has.
float top_k_score(std::span<const float> scores, std::int64_t top_k) {
  std::vector<float> sorted(scores.begin(), scores.end());
  const auto last = sorted.begin() + (top_k - 1);
  std::nth_element(sorted.begin(), last, sorted.end(), std::greater<>());
  return *last;
}

// Keeps the most likely tokens until their sum reaches top_p of the total.
void keep_top_p(std::span<double> weights, double top_p) {
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

void weigh(std::span<const float> scores, float highest, const SampleOptions& options,
           std::span<double> weights) {
  const bool all = options.top_k == 0 || options.top_k >= std::ssize(scores);
  const float lowest = all ? -kInfinity : top_k_score(scores, options.top_k);
  for (std::size_t token = 0; token < scores.size(); ++token) {
    const double distance = static_cast<double>(scores[token]) - static_cast<double>(highest);
    weights[token] = scores[token] < lowest ? 0.0 : std::exp(distance / options.temperature);
  }
  if (options.top_p < 1.0) keep_top_p(weights, options.top_p);
  for (double& weight : weights) {
    if (weight < options.min_p) weight = 0.0;
  }
}

// The token whose share of the sum holds the place `uniform`.
std::int32_t draw(std::span<const double> weights, double uniform) {
  double total = 0.0;
  for (const double weight : weights)
    total += weight;
  double sum = 0.0;
  std::int32_t token = 0;
  for (std::size_t i = 0; i < weights.size() && sum <= uniform * total; ++i) {
    if (weights[i] > 0.0) token = static_cast<std::int32_t>(i);
    sum += weights[i];
  }
  return token;
}

// The highest score; not finite if the row cannot be drawn from.
float highest_of(std::span<const float> scores) {
  float highest = -kInfinity;
  for (const float score : scores) {
    if (!(score < kInfinity)) return kInfinity;
    highest = std::max(highest, score);
  }
  return highest;
}

}  // namespace

void penalise(const TensorView& scores, const TensorView& seen, float penalty, Stream) {
  const std::int64_t vocabulary = scores.size(1);
  for (std::int64_t i = 0; i < seen.numel(); ++i) {
    const std::int32_t token = seen.as<std::int32_t>()[i];
    if (token < 0 || token >= vocabulary) continue;
    float& score = scores.as<float>()[i / seen.size(1) * vocabulary + token];
    score = score < 0.0f ? score * penalty : score / penalty;
  }
}

void sample(const TensorView& scores, const SampleOptions& options, const TensorView& uniforms,
            const TensorView& out, const TensorView& weights, Stream) {
  const auto vocabulary = static_cast<std::size_t>(scores.size(1));
  parallel_for(scores.size(0), num_threads(), [&](std::int64_t row, int) {
    const std::int64_t first = row * scores.size(1);
    const std::span line(scores.as<float>() + first, vocabulary);
    std::vector<double> local(weights.defined() ? 0 : vocabulary);
    const std::span own(weights.defined() ? weights.as<double>() + first : local.data(),
                        vocabulary);
    const float highest = highest_of(line);
    std::int32_t token = -1;
    if (std::isfinite(highest)) {
      weigh(line, highest, options, own);
      token = draw(own, uniforms.as<double>()[row]);
    } else {
      std::ranges::fill(own, 0.0);
    }
    out.as<std::int32_t>()[row] = token;
  });
}

}  // namespace flashmha::cpu::ops
