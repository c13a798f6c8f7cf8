#pragma once

#include <cstdint>

namespace flashmha::cpu {

// The machine's own rates, which speeds are given as shares of. These only do the work, on the
// calling thread; the caller takes the time.
struct ProbeKernels {
  // `rounds` times one FMA into each of a set of independent accumulators, in registers alone.
  // Returns the number of floating-point operations done. Starts from *sink and leaves a result
  // there, so that the work can neither be foreseen nor dropped.
  int64_t (*fma)(int64_t rounds, float* sink);
  // Reads `count` floats (a multiple of 64) once, in order.
  void (*read)(const float* data, int64_t count, float* sink);
};

}  // namespace flashmha::cpu
