// Which instance of the portable forward kernel serves a call.
#include <algorithm>
#include <limits>

#include "cuda/error.h"
#include "cuda/params.h"
#include "cuda/sm80/kernels.h"
#include "cuda/sm80/launch_forward.h"

namespace flashmha::cuda::sm80 {
namespace {

struct ForwardInstance {
  DType dtype;
  int head_dim;
  bool general;
  Launch (*launch)(const ForwardParams&, const Splits&, std::int64_t, cudaStream_t);
};

template <class T, int head_dim, bool general>
constexpr ForwardInstance forward_instance() {
  return {dtype_of<T>, head_dim, general, cuda::launch_forward<T, head_dim, general>};
}

constexpr ForwardInstance kInstances[] = {
#include "cuda/sm80/forward.def"
};

const ForwardInstance& instance_for(const Problem& problem, bool general) {
  const std::int64_t width = std::max(problem.sizes.head_dim, problem.sizes.head_dim_v);
  const auto* found = std::find_if(
      std::begin(kInstances), std::end(kInstances), [&](const ForwardInstance& instance) {
        return instance.dtype == problem.dtype && instance.general == general &&
               instance.head_dim >= width;
      });
  if (found == std::end(kInstances)) {
    fail(ErrorCode::unsupported, "[sm80_forward] no instance for {}", describe(problem));
  }
  return *found;
}

}  // namespace

bool has_options(const Problem& problem) {
  const Problem::Scores& scores = problem.scores;
  return problem.layout.page_size > 0 || scores.softcap > 0.0f || scores.dropout_p > 0.0f ||
         scores.alibi || scores.bias || scores.mask || scores.softmax_scale <= 0.0f;
}

bool needs_general(const Problem& problem, const ForwardParams& params) {
  const bool aligned =
      params.q.aligned && params.k.aligned && params.v.aligned && params.out.aligned;
  return !aligned || has_options(problem);
}

std::string refuse(const Problem& problem, Pass pass) {
  if (problem.pass != pass) return "serves another pass";
  if (problem.device.type != DeviceType::cuda) {
    return "serves tensors on a GPU; these are on the CPU";
  }
  constexpr int kOldest = 80;
  const int capability = compute_capability(problem.device);
  if (capability == 0) {
    return fmt::format("{} is not there; {} GPUs can be used", device_name(problem.device),
                       num_devices(DeviceType::cuda));
  }
  if (capability < kOldest) {
    return fmt::format("needs compute capability 8.0; {} has {}.{}", device_name(problem.device),
                       capability / 10, capability % 10);
  }
  const Problem::Sizes& sizes = problem.sizes;
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  // Positions of a tile that reaches beyond the end are counted, too.
  if (std::max(sizes.seqlen_q, sizes.seqlen_k) > kMost - 1024) {
    return fmt::format("serves sequences below 2^31 - 1024; these have up to {}",
                       std::max(sizes.seqlen_q, sizes.seqlen_k));
  }
  constexpr std::int64_t kSmallestBlock = 64;
  const std::int64_t row_blocks = (sizes.seqlen_q + kSmallestBlock - 1) / kSmallestBlock;
  std::int64_t blocks = pass == Pass::decode ? kMostSplits : 1;
  if (__builtin_mul_overflow(blocks, sizes.batch, &blocks) ||
      __builtin_mul_overflow(blocks, sizes.num_heads_q, &blocks) ||
      __builtin_mul_overflow(blocks, row_blocks, &blocks) || blocks > kMost) {
    return "serves up to 2^31 blocks of 64 queries and parts of the keys";
  }
  return {};
}

void run_forward(const Problem& problem, const AttentionCall& call, const ForwardParams& params,
                 const Splits& splits, Stream stream) {
  if (problem.sizes.batch == 0 || problem.sizes.seqlen_q == 0) return;
  const ForwardInstance& instance =
      instance_for(problem, splits.most > 1 || needs_general(problem, params));
  const cudaStream_t queue = stream_of(stream);
  require_launched(instance.launch(params, splits, params.lengths.seqlen_q, queue), call, problem,
                   queue);
}

void launch_forward(const Problem& problem, const AttentionCall& call,
                    std::span<std::byte> /*workspace*/, Stream stream) {
  const CurrentDevice current(problem.device, "sm80_forward");
  run_forward(problem, call, forward_params(problem, call), {}, stream);
}

}  // namespace flashmha::cuda::sm80
