// Compares results with the truth: shapes, then where infinities and NaNs lie, then values.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "flashmha/flashmha.h"

namespace flashmha::truth {

// Calls visit(found, expected) for every element of two contiguous float64 tensors.
template <class Visit>
void for_each_pair(const Tensor& found, const Tensor& expected, Visit visit) {
  for (std::int64_t i = 0; i < found.numel(); ++i) {
    visit(found.as<double>()[i], expected.as<double>()[i]);
  }
}

// The largest difference, relative to the largest finite value of the truth (or to 0.1, where the
// truth is smaller than that). Infinity if shapes, infinities or NaNs differ.
inline double distance(const TensorView& found, const TensorView& truth) {
  if (!found.defined() || found.shape != truth.shape)
    return std::numeric_limits<double>::infinity();
  double scale = 0.1;
  double worst = 0.0;
  for_each_pair(cast(found, DType::float64), cast(truth, DType::float64), [&](double x, double y) {
    const bool same_kind = std::isnan(y)      ? std::isnan(x)
                           : std::isfinite(y) ? std::isfinite(x)
                                              : x == y;
    if (!same_kind) {
      worst = std::numeric_limits<double>::infinity();
    } else if (std::isfinite(y)) {
      scale = std::max(scale, std::abs(y));
      worst = std::max(worst, std::abs(x - y));
    }
  });
  return worst / scale;
}

// tolerance: the largest distance that is accepted.
inline void expect_close(const TensorView& found, const TensorView& truth, double tolerance,
                         const std::string& what) {
  const double difference = distance(found, truth);
  EXPECT_LE(difference, tolerance)
      << what << ": found " << to_string(found) << ", truth " << to_string(truth);
}

}  // namespace flashmha::truth
