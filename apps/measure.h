// Times and memory of work that is run several times.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "flashmha/device.h"

namespace flashmha::app {

// What repeated runs gave. The median is the figure; the smallest and largest show the spread.
struct Spread {
  double median = 0.0;
  double min = 0.0;
  double max = 0.0;
};

Spread spread_of(std::vector<double> values);

// Element by element a / b of runs that were made next to each other: drift of the machine cancels.
Spread ratio_of(std::span<const double> a, std::span<const double> b);

struct Rounds {
  int repetitions = 7;
  // Short work is repeated for at least this long (but at most 20 * repetitions times).
  double min_seconds = 0.25;
  Device device = {};  // its queue is waited for
};

// Runs every candidate once to warm up, then all of them in turn (a b a b ...). Returns the seconds
// of each run: result[candidate][round].
std::vector<std::vector<double>> time_in_turn(std::span<const std::function<void()>> candidates,
                                              const Rounds& rounds);

// Bytes of host tensors and workspaces that work() has alive at once, beyond those that were alive
// before.
std::size_t extra_memory_bytes(const std::function<void()>& work, Device device = {});

}  // namespace flashmha::app
