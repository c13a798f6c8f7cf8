// One attention problem with its tensors, ready to be run again and again without allocations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flashmha/nn.h"
#include "flashmha/plan.h"

namespace flashmha::app {

struct KernelShape {
  Pass pass = Pass::forward;
  DType dtype = DType::float32;
  std::int64_t batch_size = 1;
  std::int64_t seq_length = 256;  // decode: keys in the cache, one query
  std::int64_t heads = 8;
  std::int64_t kv_heads = 8;
  std::int64_t head_dim = 64;
  bool causal = false;

  // 4 B H S S D forward, 10 B H S S D backward, half of it when causal.
  double flops() const;
  // Keys and values that a decoding step reads.
  double kv_bytes() const;
};

// "forward", "backward", "decode".
const char* pass_name(Pass pass);

class KernelCase {
 public:
  explicit KernelCase(const KernelShape& shape);

  // The kernel that the registry chooses, on this many threads.
  void run_flash(int threads);
  // nn::plain_attention or its backward.
  void run_plain(int threads);

  // Bytes beyond q, k, v and dout.
  std::size_t flash_extra_bytes() const;
  std::size_t plain_extra_bytes();

 private:
  struct Prepared {
    int threads = 0;
    Plan plan;
    Tensor workspace;
  };
  Prepared& prepared(int threads);

  KernelShape shape_;
  Tensor q_, k_, v_, out_, lse_, dout_, dq_, dk_, dv_, cache_seqlens_;
  AttentionCall call_;
  std::vector<Prepared> prepared_;
  nn::PlainAttentionResult plain_forward_;  // what the plain backward reads
};

}  // namespace flashmha::app
