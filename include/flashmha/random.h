// Reproducible random tensors: an element depends on the seed and on its row-major index only, so
// that they are equal on every machine and for every number of threads.
#pragma once

#include <cstdint>

#include "flashmha/tensor.h"

namespace flashmha::model {

// Normal values with mean 0; values contiguous, floating. Float32 numbers are drawn and rounded.
void fill_normal(const TensorView& values, std::uint64_t seed, double standard_deviation = 1.0);

// Integers in [0, bound); values contiguous, int32 or int64.
void fill_integers(const TensorView& values, std::uint64_t seed, std::int64_t bound);

}  // namespace flashmha::model
