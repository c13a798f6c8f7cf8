#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "flashmha/dtype.h"

namespace flashmha::cpu {

// Dimensions that a batch of products may have, outermost first.
constexpr int kGemmBatchDims = 4;

// A batch of matrices. Any strides, in elements; a batch stride of 0 repeats a matrix. Fastest when
// the row or the column stride is 1. dtype: float32, bfloat16 or float16.
struct GemmMatrix {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
  int64_t batch_strides[kGemmBatchDims] = {};
};

// c[m, n] = alpha a[m, k] b[k, n] + beta c + bias, for every index of the batch.
struct GemmProblem {
  int64_t m = 0, n = 0, k = 0;
  int64_t batch[kGemmBatchDims] = {1, 1, 1, 1};
  GemmMatrix a, b, c;          // a and b are only read
  const void* bias = nullptr;  // [n], or null
  DType bias_dtype = DType::float32;
  int64_t bias_stride = 1;
  float alpha = 1.0f;
  float beta = 0.0f;  // 0: c is not read
};

// Runs on num_threads() threads. Every element is one chain of float FMAs over k in increasing
// order and is rounded to c's dtype once: its bits depend neither on the threads nor on m, so a
// row gives the same result alone and in a batch. c must not overlap a, b or bias. The arguments
// are not checked here: this is the inside of ops::matmul.
void gemm(const GemmProblem& problem, const KernelTable& table = kernels());

}  // namespace flashmha::cpu
