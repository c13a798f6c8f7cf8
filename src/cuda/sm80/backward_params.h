// What the portable backward kernels are told; made by backward.cpp, read by backward.cuh.
#pragma once

#include "cuda/launch.h"
#include "cuda/sm80/forward_params.h"

namespace flashmha::cuda {

// One float per query row and head: [batch, num_heads_q, seqlen_q], or [num_heads_q, total_q].
struct RowValues {
  float* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
};

// The gradient of a bias, contiguous; a size is 1 where the bias is broadcast.
struct BiasGradient {
  float* data = nullptr;
  std::int64_t num_batches = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_rows = 0;
  std::int64_t num_columns = 0;
};

struct BackwardParams {
  ForwardParams forward;  // out and lse are read
  Rows dout, dq, dk, dv;
  RowValues dlse;            // optional
  RowValues lse_log2;        // workspace: lse / ln 2; +inf of a query that sees nothing
  RowValues delta;           // workspace: sum of dout * out over a row, less dlse
  float* dq_sums = nullptr;  // workspace of Gradient::all, zeros: see QuerySums in backward.cuh
  BiasGradient dbias;
  float* dsinks = nullptr;  // [num_heads_q]
};

// Which gradients one launch writes. dk and dv together where registers allow it; all: dq, dk and
// dv, with sums of dq whose order, and so whose last bits, change from run to run.
enum class Gradient { q, k, v, k_and_v, all, bias };

// seqlen: the longest there is, of queries for their gradient, else of keys; at least 1.
template <class T, int head_dim, bool general, Gradient gradient>
Launch launch_backward(const BackwardParams& params, std::int64_t seqlen, cudaStream_t stream);

template <class T, int head_dim>
Launch launch_backward_bias(const BackwardParams& params, cudaStream_t stream);

// Of Gradient::all: keys that a block keeps, and queries that it visits at a time, for each of
// which sums of dq are kept.
constexpr int kept_of_all(int head_dim) {
  return head_dim <= 128 ? 128 : 64;
}
constexpr int rows_of_all(int head_dim) {
  return head_dim <= 64 ? 128 : 64;
}
// Multiprocessors with less shared memory than this cannot run it.
constexpr int shared_bytes_of_all(int head_dim) {
  const int kept = kept_of_all(head_dim);
  const int rows = rows_of_all(head_dim);
  const int exchanged = 2 * kept * rows * 2;  // P and dS
  return (2 * kept + 2 * 2 * rows) * head_dim * 2 + exchanged + 2 * 2 * rows * 4;
}

// What comes before and after: delta of every row, and the gradient of the sinks.
Launch launch_delta(DType dtype, const BackwardParams& params, std::int64_t seqlen_q,
                    cudaStream_t stream);
Launch launch_dsinks(DType dtype, const BackwardParams& params, cudaStream_t stream);

}  // namespace flashmha::cuda
