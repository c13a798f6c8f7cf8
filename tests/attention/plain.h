// Attention as one writes it down without thought for memory: the scores of a head as a matrix,
// each step rounded to the storage type, sums in float. Its error against the specification is the
// yardstick for kernels of that type (the rule of FlashAttention's own tests).
#pragma once

#include "flashmha/plan.h"

namespace flashmha::tests {

// `call` is a float64 call (Twin) that the reference could serve. Reads its inputs, rounds like
// `dtype` and writes its outputs; of a decode call the cache already holds the appended keys.
void plain_forward(const Problem& problem, const AttentionCall& call, DType dtype);
void plain_backward(const Problem& problem, const AttentionCall& call, DType dtype);

}  // namespace flashmha::tests
