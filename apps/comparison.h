// One figure for plain and for flash attention, side by side.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "measure.h"

namespace flashmha::app {

struct Comparison {
  std::string level;  // "function", "layer", "model"
  std::string name;   // "training", "training_memory"
  std::string unit;   // "ms" or "bytes"
  Spread plain;
  Spread flash;
  Spread ratio;  // plain / flash: above 1, flash is better
};

using Comparisons = std::vector<Comparison>;

// The work of both, timed in turn.
Comparison compare_times(const std::string& level, const std::string& name,
                         const std::function<void()>& plain, const std::function<void()>& flash,
                         const Rounds& rounds);

// Two byte counts.
Comparison compare_memory(const std::string& level, const std::string& name,
                          std::size_t plain_bytes, std::size_t flash_bytes);

}  // namespace flashmha::app
