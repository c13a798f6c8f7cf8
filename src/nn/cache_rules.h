// What all caches check in the same way.
#pragma once

#include <span>

#include "core/check.h"
#include "core/format.h"

namespace flashmha::nn {

// What is left of `held` tokens: `seqlen` of them, or all but the last -seqlen.
std::int64_t cropped_length(std::int64_t held, std::int64_t seqlen);

// k and v fit each other and the cache (which is not defined before the first append).
void check_append(const TensorView& k, const TensorView& v, std::int64_t batch,
                  const TensorView& cache_k, const TensorView& cache_v);

void check_rows(std::span<const std::int64_t> rows, std::int64_t batch);

}  // namespace flashmha::nn
