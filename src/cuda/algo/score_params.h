// What turns products q k^T into scores, in the words of flashmha/attention.h.
#pragma once

#include "cuda/algo/params.h"
#include "flashmha/attention.h"

namespace flashmha::cuda {

struct ScoreParams {
  float softmax_scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  PerHead alibi;
  PairMap bias;
  PairMap mask;  // bytes
  PerHead sinks;
  Dropout dropout;  // p = 0: none
};

}  // namespace flashmha::cuda
