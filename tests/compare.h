// Compares a result with the expected one: first where infinities and NaN lie, then how far the
// finite elements are apart.
#pragma once

#include <cstdint>
#include <string>

#include "flashmha/tensor.h"

namespace flashmha::tests {

struct Comparison {
  bool ok = true;
  double max_error = 0;  // over elements that are finite on both sides
  std::string message;   // of a failure: where, both values, how many elements are wrong
};

// `actual` may have any strides and floating dtype; both have the same shape. An element is wrong
// if it differs in kind (finite, +inf, -inf, NaN), or by more than `tolerance`.
Comparison compare(const std::string& name, const TensorView& actual, const TensorView& expected,
                   double tolerance);

// Largest magnitude of the finite elements.
double max_abs(const TensorView& tensor);

// Equal dtype, shape and bits, whatever the strides.
bool same_bits(const TensorView& a, const TensorView& b);

}  // namespace flashmha::tests
