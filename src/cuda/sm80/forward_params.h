// What the portable forward kernel is told; made by forward.cpp, read by forward.cuh.
#pragma once

#include "cuda/algo/params.h"
#include "cuda/algo/score_params.h"
#include "flashmha/plan.h"

namespace flashmha::cuda {

struct ForwardParams {
  Rows q, k, v, out;
  float* lse = nullptr;               // null: nobody needs it
  std::int64_t lse_batch_stride = 0;  // 0 of a ragged batch
  std::int64_t lse_head_stride = 0;
  Lengths lengths;
  Pages pages;
  Problem::Band band;
  ScoreParams scores;
  std::int32_t batch = 0;
  std::int32_t num_heads_q = 0;
  std::int32_t group_size = 1;
  std::int32_t head_dim = 0;
  std::int32_t head_dim_v = 0;
};

}  // namespace flashmha::cuda
