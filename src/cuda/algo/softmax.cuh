// The running softmax of rows: highest score, sum of exponentials, and the factor that what was
// added up so far must be multiplied with (docs/implementation.md, "The forward pass").
#pragma once

#include <cmath>

#include "cuda/algo/scores.cuh"

namespace flashmha::cuda {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;

// Of one thread: 2 rows in each row tile, shared with the other three threads of its quad. Scores
// come unscaled; scale_log2 > 0 takes them to powers of 2. max is the same in all four threads, sum
// is this thread's part until finish().
template <int kRowTiles>
struct SoftmaxRows {
  float max[kRowTiles][2];
  float sum[kRowTiles][2];

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        max[m][half] = -INFINITY, sum[m][half] = 0.0f;
    }
  }

  // 0 where nothing is visible yet, so that no infinities are subtracted from each other.
  static __device__ __forceinline__ float reference(float max, float scale_log2) {
    return max == -INFINITY ? 0.0f : max * scale_log2;
  }

  // Scores become exp2(scale_log2 * (score - max)) and enter the sums. `out` [kRowTiles][n] is
  // multiplied where the maximum rose; the threads of a warp skip that together.
  template <int kColumnTiles, int kOutTiles>
  __device__ __forceinline__ void add(ScoreTile<kRowTiles, kColumnTiles>& scores, float scale_log2,
                                      Accumulator (&out)[kRowTiles][kOutTiles]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      float factor[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float highest = max[m][half];
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          highest =
              fmaxf(highest, fmaxf(scores.value[m][n][2 * half], scores.value[m][n][2 * half + 1]));
        }
        highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFFu, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFFu, highest, 2));
        const float base = reference(highest, scale_log2);
        factor[half] = exp2_fast(max[m][half] * scale_log2 - base);
        max[m][half] = highest;
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            float& score = scores.value[m][n][e];
            score = exp2_fast(fmaf(score, scale_log2, -base));
            total += score;
          }
        }
        sum[m][half] = fmaf(sum[m][half], factor[half], total);
      }
      if (__any_sync(0xFFFFFFFFu, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            out[m][n][e] *= factor[e / 2];
        }
      }
    }
  }

  // Ends a row: its lse, and the factor that makes probabilities of what was added up. `sink` is
  // one logit more; -inf adds nothing.
  struct End {
    float lse;
    float factor;
  };
  __device__ __forceinline__ End finish(int m, int half, float scale_log2, float sink) const {
    float total = sum[m][half];
    total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
    total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
    const float sink_log2 = sink * kLog2E;
    const float own = reference(max[m][half], scale_log2);
    const bool sees_nothing = max[m][half] == -INFINITY && total == 0.0f;
    if (sees_nothing) return {sink, 0.0f};
    const float base = fmaxf(own, sink_log2);
    const float shrink = exp2f(own - base);
    total = fmaf(total, shrink, exp2f(sink_log2 - base));
    return {(base + log2f(total)) * kLn2, shrink / total};
  }
};

}  // namespace flashmha::cuda
