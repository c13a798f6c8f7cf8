#include "cpu/gemm.h"
#include "cpu/ops.h"
#include "cpu/ops_rows.h"

namespace flashmha::cpu::ops {
namespace {

GemmMatrix matrix_of(const TensorView& view) {
  GemmMatrix matrix{.data = view.data,
                    .dtype = view.dtype,
                    .row_stride = view.stride(-2),
                    .column_stride = view.stride(-1)};
  const int outer = view.rank() - 2;
  for (int dim = 0; dim < outer; ++dim) {
    matrix.batch_strides[kGemmBatchDims - outer + dim] = view.strides[dim];
  }
  return matrix;
}

}  // namespace

void matmul(const TensorView& a, const TensorView& b, const TensorView& c,
            const MatmulOptions& options, Stream) {
  static_assert(Shape::kMaxRank - 2 <= kGemmBatchDims);
  GemmProblem problem{.m = c.size(-2), .n = c.size(-1), .k = a.size(-1)};
  problem.a = matrix_of(a);
  problem.b = matrix_of(b);
  problem.c = matrix_of(c);
  problem.alpha = options.alpha;
  problem.beta = options.beta;
  if (options.bias.defined()) {
    problem.bias = options.bias.data;
    problem.bias_dtype = options.bias.dtype;
    problem.bias_stride = options.bias.stride(0);
  }
  const int outer = c.rank() - 2;
  for (int dim = 0; dim < outer; ++dim) {
    problem.batch[kGemmBatchDims - outer + dim] = c.shape[dim];
  }
  gemm(problem);
}

void bias_gradient(const TensorView& dout, const TensorView& gradient, Stream) {
  const Rows rows(dout);
  const std::int64_t n = rows.length();
  reduce_rows(rows.count(), n, gradient.as<float>(),
              [&](std::int64_t begin, std::int64_t end, float* sums) {
                const RowBuffer buffer(n);
                for (std::int64_t r = begin; r < end; ++r) {
                  row_kernels().add(sums, rows.read(r, buffer), n, sums);
                }
              });
}

}  // namespace flashmha::cpu::ops
