// The loss curve as an SVG picture.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "flashmha/trainer.h"

namespace flashmha::train {

// Round numbers from at or below `low` to at or above `high`, in equal steps of 1, 2 or 5 times a
// power of ten: about `count` of them.
struct Ticks {
  double first = 0.0;
  double step = 1.0;
  int count = 2;
  int decimals = 0;  // that write them exactly

  double last() const { return first + step * (count - 1); }
};
Ticks round_ticks(double low, double high, int count);

// Loss over steps: every step (averaged where the picture has fewer columns) as a thin line, their
// moving average as a strong one, the held-out loss as points joined by a line. A complete SVG
// document that follows the reader's light or dark scheme.
std::string draw_loss_curve(std::span<const StepRecord> records);

}  // namespace flashmha::train
