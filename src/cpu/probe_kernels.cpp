// Compiled once for each tier.

#include "cpu/probe.h"
#include "cpu/simd.h"

namespace flashmha::cpu::FLASHMHA_ISA {

// Twelve chains: more than latency x throughput of any core here (4 cycles x 2 a cycle), few enough
// for sixteen registers.
constexpr int kChains = 12;

static int64_t fma_peak(int64_t rounds, float* sink) {
  Vec acc[kChains];
  // From memory, so that no chain can be folded to a constant.
  for (int c = 0; c < kChains; ++c) {
    acc[c] = set1(*sink + static_cast<float>(c));
  }
  const Vec scale = set1(0.999f);
  const Vec offset = set1(0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c)
      acc[c] = fma(acc[c], scale, offset);
  }
  Vec total = {};
  for (int c = 0; c < kChains; ++c)
    total += acc[c];
  *sink = sum(total);
  return rounds * kChains * kLanes * 2;
}

static void read_once(const float* data, int64_t count, float* sink) {
  constexpr int kStreams = 64 / kLanes;
  Vec acc[kStreams] = {};
  for (int64_t i = 0; i < count; i += 64) {
#pragma GCC unroll 16
    for (int s = 0; s < kStreams; ++s)
      acc[s] = max(acc[s], load(data + i + s * kLanes));
  }
  Vec top = acc[0];
  for (int s = 1; s < kStreams; ++s)
    top = max(top, acc[s]);
  *sink = highest(top);
}

extern const ProbeKernels probe_kernels;
constexpr ProbeKernels probe_kernels = {fma_peak, read_once};

}  // namespace flashmha::cpu::FLASHMHA_ISA
