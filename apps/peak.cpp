#include "peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "core/parallel.h"
#include "cpu/isa.h"

namespace flashmha::app {
namespace {

constexpr std::int64_t kReadBlock = 1 << 14;  // floats of one task: 64 KiB

// The probes write here, so that no compiler can leave them out.
std::atomic<float> sink_of_probes = 0.0f;

std::int64_t fma_once(std::int64_t rounds) {
  float sink = 0.0f;
  const std::int64_t flops = cpu::kernels().probe->fma(rounds, &sink);
  sink_of_probes.store(sink, std::memory_order_relaxed);
  return flops;
}

std::int64_t rounds_of_10_ms() {
  using Clock = std::chrono::steady_clock;
  for (std::int64_t rounds = 1 << 10;; rounds *= 4) {
    const auto start = Clock::now();
    fma_once(rounds);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (seconds > 2e-3)
      return static_cast<std::int64_t>(static_cast<double>(rounds) * 1e-2 / seconds);
  }
}

}  // namespace

FmaProbe::FmaProbe(int threads)
    : threads_(threads),
      rounds_(rounds_of_10_ms()),
      flops_(static_cast<double>(fma_once(rounds_)) * threads) {}

void FmaProbe::run() const {
  parallel_for(threads_, threads_, [&](std::int64_t, int) { fma_once(rounds_); });
}

ReadProbe::ReadProbe(int threads, std::size_t bytes)
    : threads_(threads),
      memory_(Tensor::zeros(
          {std::max<std::int64_t>(1, static_cast<std::int64_t>(bytes / sizeof(float)) / kReadBlock),
           kReadBlock},
          DType::float32)) {}

void ReadProbe::run() const {
  parallel_for(memory_.size(0), threads_, [&](std::int64_t block, int) {
    float sink = 0.0f;
    cpu::kernels().probe->read(memory_.as<float>() + block * kReadBlock, kReadBlock, &sink);
    sink_of_probes.store(sink, std::memory_order_relaxed);
  });
}

}  // namespace flashmha::app
