// The seam between the host's part of the forward (forward.cpp, decode.cpp) and its kernels.
#pragma once

#include "cuda/launch.h"
#include "cuda/sm80/forward_params.h"

namespace flashmha::cuda {

// Keys cut into parts that blocks of their own work on, and whose results are added up afterwards
// (Dao 2023, "Flash-Decoding"). How many keys a part has depends on the sequence's own length and
// on what was asked for, so that the bits of a sequence do not depend on its batch.
struct Splits {
  std::int32_t most = 1;       // of the longest sequence; 1: there are no parts
  std::int32_t requested = 0;  // 0: parts of a suitable length
  float* out = nullptr;        // [most, batch, num_heads_q, seqlen_q, head_dim_v]
  float* lse = nullptr;        // [most, batch, num_heads_q, seqlen_q]
};

inline constexpr int kSplitBlock = 64;     // parts are multiples of this
inline constexpr int kMinSplitKeys = 256;  // reading fewer takes less time than adding up
inline constexpr int kMostSplits = 128;    // keep every multiprocessor busy for one head

constexpr int keys_of_split(const Splits& splits, std::int64_t seqlen_k) {
  const int parts = splits.requested > 0 ? splits.requested : kMostSplits;
  const auto even = static_cast<int>(((seqlen_k + parts - 1) / parts + kSplitBlock - 1) /
                                     kSplitBlock * kSplitBlock);
  const int least = splits.requested > 0 ? kSplitBlock : kMinSplitKeys;
  return even > least ? even : least;
}
constexpr int num_splits_of(const Splits& splits, std::int64_t seqlen_k) {
  if (splits.most <= 1 || seqlen_k == 0) return 1;
  const int keys = keys_of_split(splits, seqlen_k);
  return static_cast<int>((seqlen_k + keys - 1) / keys);
}

// Queues the kernel. seqlen_q: of the longest sequence, at least 1. Only general instances split.
template <class T, int head_dim, bool general>
Launch launch_forward(const ForwardParams& params, const Splits& splits, std::int64_t seqlen_q,
                      cudaStream_t stream);

// Adds up the parts of every sequence that has more than one.
Launch launch_combine(DType dtype, const ForwardParams& params, const Splits& splits,
                      cudaStream_t stream);

}  // namespace flashmha::cuda
