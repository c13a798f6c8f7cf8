// Rotary embedding of one row (Su et al. 2021, "RoFormer", section 3.2.2).
#pragma once

#include <cstdint>

#include "attention/sequence.h"
#include "reference/head.h"

namespace flashmha::reference {

// Copies a row of head_dim elements and rotates its first rotary_dim as pairs (a, b) of
// coordinates, pair n by the angle of table row `position` and column n:
//   a' = a cos - b sin,   b' = b cos + a sin
template <class T>
void rotate(const Rotary& rotary, std::int64_t position, const T* row, std::int64_t head_dim,
            double* rotated) {
  for (std::int64_t d = 0; d < head_dim; ++d)
    rotated[d] = to_double(row[d]);
  if (!rotary.cos.defined()) return;
  const std::int64_t num_pairs = rotary.cos.size(1);
  for (std::int64_t n = 0; n < num_pairs; ++n) {
    const std::int64_t first = rotary.interleaved ? 2 * n : n;
    const std::int64_t second = rotary.interleaved ? 2 * n + 1 : n + num_pairs;
    const double cos =
        element_as_double(rotary.cos, position * rotary.cos.stride(0) + n * rotary.cos.stride(1));
    const double sin =
        element_as_double(rotary.sin, position * rotary.sin.stride(0) + n * rotary.sin.stride(1));
    rotated[first] = to_double(row[first]) * cos - to_double(row[second]) * sin;
    rotated[second] = to_double(row[second]) * cos + to_double(row[first]) * sin;
  }
}

}  // namespace flashmha::reference
