// One call of cuBLASLt: a strided batch of products of matrices in row-major or column-major order.
#pragma once

#include <cstdint>

#include "cuda/ops/call.h"

namespace flashmha::cuda::ops {

// A matrix whose rows (or, transposed, whose columns) are contiguous.
struct ProductMatrix {
  void* data = nullptr;
  DType dtype = DType::float32;
  bool transposed = false;        // columns are contiguous
  std::int64_t leading = 0;       // elements between rows (columns)
  std::int64_t batch_stride = 0;  // elements
};

// c = alpha * a b + beta * c + bias; c not transposed. a and b have one dtype, which is c's unless
// c is float32.
struct Product {
  std::int64_t m = 0, n = 0, k = 0, batch = 1;
  ProductMatrix a, b, c;
  float alpha = 1.0f;
  float beta = 0.0f;
  const void* bias = nullptr;  // [n], of c's dtype; or null
};

// False if cuBLASLt has no kernel for it. Sums are in float32 and in an order that depends on the
// product alone: the same bits every time.
bool multiply(const Call& call, const Product& product);

}  // namespace flashmha::cuda::ops
