#include "comparison.h"

#include <algorithm>
#include <array>

namespace flashmha::app {

Comparison compare_times(const std::string& level, const std::string& name,
                         const std::function<void()>& plain, const std::function<void()>& flash,
                         const Rounds& rounds) {
  const std::array candidates = {plain, flash};
  auto times = time_in_turn(candidates, rounds);
  for (std::vector<double>& runs : times) {
    for (double& run : runs)
      run *= 1e3;
  }
  return {.level = level,
          .name = name,
          .unit = "ms",
          .plain = spread_of(times[0]),
          .flash = spread_of(times[1]),
          .ratio = ratio_of(times[0], times[1])};
}

Comparison compare_memory(const std::string& level, const std::string& name,
                          std::size_t plain_bytes, std::size_t flash_bytes) {
  const std::array plain = {static_cast<double>(plain_bytes)};
  const std::array flash = {static_cast<double>(std::max<std::size_t>(flash_bytes, 1))};
  return {.level = level,
          .name = name,
          .unit = "bytes",
          .plain = spread_of({plain[0]}),
          .flash = spread_of({flash[0]}),
          .ratio = ratio_of(plain, flash)};
}

}  // namespace flashmha::app
