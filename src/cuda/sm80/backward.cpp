// Which instances of the portable backward kernel serve a call, and in which order they run.
#include <algorithm>
#include <limits>

#include "cuda/error.h"
#include "cuda/params.h"
#include "cuda/sm80/backward_params.h"
#include "cuda/sm80/kernels.h"

namespace flashmha::cuda::sm80 {
namespace {

struct BackwardInstance {
  DType dtype;
  int head_dim;
  bool general;
  Gradient gradient;
  Launch (*launch)(const BackwardParams&, std::int64_t, cudaStream_t);
};

template <class T, int head_dim, bool general, Gradient gradient>
constexpr BackwardInstance backward_instance() {
  return {dtype_of<T>, head_dim, general, gradient,
          cuda::launch_backward<T, head_dim, general, gradient>};
}

constexpr BackwardInstance kInstances[] = {
#include "cuda/sm80/backward.def"
};

struct BiasInstance {
  DType dtype;
  int head_dim;
  Launch (*launch)(const BackwardParams&, cudaStream_t);
};

template <class T, int head_dim>
constexpr BiasInstance backward_bias_instance() {
  return {dtype_of<T>, head_dim, cuda::launch_backward_bias<T, head_dim>};
}

constexpr BiasInstance kBiasInstances[] = {
#include "cuda/sm80/backward_bias.def"
};

// The width of the instances that serve a problem; they differ in what they give.
int instance_width(const Problem& problem) {
  const std::int64_t needed = std::max(problem.sizes.head_dim, problem.sizes.head_dim_v);
  int width = 0;
  for (const BackwardInstance& instance : kInstances) {
    if (instance.head_dim >= needed && (width == 0 || instance.head_dim < width)) {
      width = instance.head_dim;
    }
  }
  return width;
}

// Whether one launch may give dq, dk and dv: Gradient::all. (Alignment is known in the call only.)
bool all_at_once(const Problem& problem) {
  const int width = instance_width(problem);
  const bool exists = std::any_of(std::begin(kInstances), std::end(kInstances), [&](auto& row) {
    return row.gradient == Gradient::all && row.head_dim == width;
  });
  return exists && !problem.gradients.deterministic && !has_options(problem) &&
         most_shared_bytes(problem.device) >= shared_bytes_of_all(width);
}

std::size_t aligned_bytes(std::int64_t count) {
  constexpr std::size_t kAlignment = 64;
  return (static_cast<std::size_t>(count) * sizeof(float) + kAlignment - 1) / kAlignment *
         kAlignment;
}

// The parts of the workspace, one behind the other: delta, lse, sums of dq.
std::size_t row_values_bytes(const Problem& problem) {
  return aligned_bytes(problem.sizes.total_q * problem.sizes.num_heads_q);
}

std::size_t dq_sums_bytes(const Problem& problem) {
  if (!all_at_once(problem)) return 0;
  const Problem::Sizes& sizes = problem.sizes;
  const int width = instance_width(problem);
  const int rows = rows_of_all(width);
  return aligned_bytes((sizes.total_q / rows + sizes.batch) * rows * sizes.num_heads_q * width);
}

RowValues row_values(const TensorView& tensor) {
  if (!tensor.defined()) return {};
  const bool ragged = tensor.rank() == 2;
  return {static_cast<float*>(tensor.data), ragged ? 0 : tensor.strides[0],
          tensor.strides[ragged ? 0 : 1]};
}

BiasGradient bias_gradient(const TensorView& dbias) {
  if (!dbias.defined()) return {};
  return {dbias.as<float>(), dbias.size(0), dbias.size(1), dbias.size(2), dbias.size(3)};
}

BackwardParams backward_params(const Problem& problem, const AttentionCall& call,
                               std::span<std::byte> workspace) {
  BackwardParams params{.forward = forward_params(problem, call),
                        .dout = rows_of(call.dout),
                        .dq = rows_of(call.dq),
                        .dk = rows_of(call.dk),
                        .dv = rows_of(call.dv),
                        .dlse = row_values(call.dlse),
                        .dbias = bias_gradient(call.dbias)};
  const TensorView like_lse{workspace.data(), DType::float32, problem.device, call.lse.shape,
                            contiguous_strides(call.lse.shape)};
  params.delta = row_values(like_lse);
  params.lse_log2 = params.delta;
  params.lse_log2.data += row_values_bytes(problem) / sizeof(float);
  params.dq_sums = reinterpret_cast<float*>(workspace.data() + 2 * row_values_bytes(problem));
  if (call.dsinks.defined()) params.dsinks = call.dsinks.as<float>();
  return params;
}

bool is_general(const Problem& problem, const BackwardParams& params) {
  const bool aligned =
      params.dout.aligned && params.dq.aligned && params.dk.aligned && params.dv.aligned;
  return !aligned || needs_general(problem, params.forward);
}

}  // namespace

std::string refuse_backward(const Problem& problem) {
  std::string reason = refuse(problem, Pass::backward);
  if (!reason.empty()) return reason;
  const Problem::Sizes& sizes = problem.sizes;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  constexpr std::int64_t kSmallestBlock = 32;
  // Blocks of the largest grid: over rows, keys, or tiles of a bias.
  const std::int64_t row_blocks = sizes.seqlen_q / kSmallestBlock + 1;
  const std::int64_t key_blocks = sizes.seqlen_k / kSmallestBlock + 1;
  std::int64_t blocks = problem.gradients.dbias ? row_blocks : 1;
  if (__builtin_mul_overflow(blocks, std::max(row_blocks, key_blocks), &blocks) ||
      __builtin_mul_overflow(blocks, sizes.batch * sizes.num_heads_q, &blocks) || blocks > kMost) {
    return "serves up to 2^31 blocks of 32 queries or keys";
  }
  return {};
}

std::size_t backward_workspace_bytes(const Problem& problem) {
  return 2 * row_values_bytes(problem) + dq_sums_bytes(problem);
}

void launch_backward(const Problem& problem, const AttentionCall& call,
                     std::span<std::byte> workspace, Stream stream) {
  const CurrentDevice current(problem.device, "sm80_backward");
  const cudaStream_t queue = stream_of(stream);
  const BackwardParams params = backward_params(problem, call, workspace);
  const Problem::Sizes& sizes = problem.sizes;
  const int width = instance_width(problem);
  const auto require = [&](const Launch& launch) {
    require_launched(launch, call, problem, queue);
  };
  require(launch_delta(problem.dtype, params, sizes.seqlen_q, queue));
  const bool general = is_general(problem, params);
  const bool all = !general && all_at_once(problem);
  for (const BackwardInstance& instance : kInstances) {
    if (instance.dtype != problem.dtype || instance.head_dim != width ||
        instance.general != general || (instance.gradient == Gradient::all) != all) {
      continue;
    }
    const bool of_queries = instance.gradient == Gradient::q;
    const std::int64_t seqlen = of_queries ? sizes.seqlen_q : sizes.seqlen_k;
    if (sizes.batch > 0 && (all || seqlen > 0)) {
      require(instance.launch(params, seqlen, queue));
    }
  }
  if (params.dbias.data) {
    for (const BiasInstance& instance : kBiasInstances) {
      if (instance.dtype == problem.dtype && instance.head_dim == width) {
        require(instance.launch(params, queue));
      }
    }
  }
  if (params.dsinks) require(launch_dsinks(problem.dtype, params, queue));
}

}  // namespace flashmha::cuda::sm80
