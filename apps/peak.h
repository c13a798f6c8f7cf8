// What the machine can do at most, measured next to the kernels.
#pragma once

#include <cstdint>

#include "flashmha/tensor.h"

namespace flashmha::app {

// Register-only fused multiply-adds in float32 on `threads` threads.
class FmaProbe {
 public:
  explicit FmaProbe(int threads);
  void run() const;                        // about 10 ms
  double flops() const { return flops_; }  // floating-point operations of a run

 private:
  int threads_;
  std::int64_t rounds_;
  double flops_;
};

// Reads `bytes` bytes of memory in order, a part on each of `threads` threads.
class ReadProbe {
 public:
  ReadProbe(int threads, std::size_t bytes);
  void run() const;
  double bytes() const { return static_cast<double>(memory_.view().bytes()); }

 private:
  int threads_;
  Tensor memory_;
};

}  // namespace flashmha::app
