// Attention as one writes it down without thought for memory: the scores of a head as a matrix,
// each step rounded to the storage type, sums in float. Its error against the specification is the
// yardstick for kernels of that type (the rule of FlashAttention's own tests).
#pragma once

#include "flashmha/plan.h"

namespace flashmha::tests {

// How large the terms are of which a result is the sum, at the element where they are largest:
// terms may cancel, their rounding errors do not. Errors of one row add up (they share its lse),
// those of different rows are independent (root of the sum of squares).
struct Terms {
  double logit = 0;  // |softmax_scale q k^T|
  double out = 0;
  double dq = 0;
  double dk = 0;
  double dv = 0;
  double dbias = 0;
  double dsinks = 0;
};

// `call` is a float64 call (Twin) that the reference could serve. Reads its inputs, rounds like
// `dtype` and writes its outputs; of a decode call the cache already holds the appended keys.
Terms plain_forward(const Problem& problem, const AttentionCall& call, DType dtype);
Terms plain_backward(const Problem& problem, const AttentionCall& call, DType dtype);

}  // namespace flashmha::tests
