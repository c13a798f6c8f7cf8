#include "measure.h"

#include <algorithm>
#include <chrono>

#include "flashmha/tensor.h"

namespace flashmha::app {
namespace {

double seconds_of(const std::function<void()>& work, Device device) {
  const auto start = std::chrono::steady_clock::now();
  work();
  synchronize(device);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  const double median =
      values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
  return {.median = median, .min = values.front(), .max = values.back()};
}

Spread ratio_of(std::span<const double> a, std::span<const double> b) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    ratios.push_back(a[i] / b[i]);
  return spread_of(std::move(ratios));
}

std::vector<std::vector<double>> time_in_turn(std::span<const std::function<void()>> candidates,
                                              const Rounds& rounds) {
  for (const auto& candidate : candidates)
    candidate();
  synchronize(rounds.device);
  std::vector<std::vector<double>> seconds(candidates.size());
  double total = 0.0;
  for (int round = 0; round < rounds.repetitions ||
                      (total < rounds.min_seconds && round < 20 * rounds.repetitions);
       ++round) {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      seconds[i].push_back(seconds_of(candidates[i], rounds.device));
      total += seconds[i].back();
    }
  }
  return seconds;
}

std::size_t extra_memory_bytes(const std::function<void()>& work, Device device) {
  reset_peak_memory(device);
  const std::size_t before = memory_stats(device).current_bytes;
  work();
  return memory_stats(device).peak_bytes - before;
}

}  // namespace flashmha::app
