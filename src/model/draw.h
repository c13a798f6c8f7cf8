// What sampling one row on the host and many rows on any device share.
#pragma once

#include <cstdint>

#include "flashmha/ops.h"
#include "flashmha/sampling.h"

namespace flashmha::model {

// The random number of a position: in [0, 1), 53 bits.
double uniform_draw(std::uint64_t seed, DrawPosition position);

// The options that ops::sample knows.
ops::SampleOptions filters_of(const SamplingOptions& options);

}  // namespace flashmha::model
