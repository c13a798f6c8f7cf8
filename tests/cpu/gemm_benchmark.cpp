// Speeds of the matrix product next to the machine's own rates, for docs/performance/cpu.md:
//
//   gemm_benchmark [threads]
//
// One thread is timed by its CPU time, so that other programs only disturb the caches; several by
// the clock. Each figure is the best of seven rounds, the peak is probed again beside each.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <span>

#include "cpu/gemm.h"
#include "flashmha/device.h"
#include "flashmha/tensor.h"

namespace flashmha {
namespace {

using cpu::GemmMatrix;
using cpu::GemmProblem;

double seconds_now() {
  if (num_threads() > 1) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class Work>
double best_seconds(int rounds, int repeats, Work work) {
  double best = 1e30;
  for (int round = 0; round < rounds; ++round) {
    const double start = seconds_now();
    for (int i = 0; i < repeats; ++i)
      work(i);
    best = std::min(best, (seconds_now() - start) / repeats);
  }
  return best;
}

// Of one thread.
double peak_gflops() {
  float sink = 2.0f;
  int64_t flops = 0;
  const double seconds =
      best_seconds(5, 1, [&](int) { flops = cpu::kernels().probe->fma(400'000, &sink); });
  return static_cast<double>(flops) / seconds * 1e-9;
}

// Of one thread, from memory.
double read_gbytes_per_second(std::span<const float> memory) {
  float sink = 0.0f;
  const double seconds = best_seconds(3, 1, [&](int) {
    cpu::kernels().probe->read(memory.data(), static_cast<int64_t>(memory.size()), &sink);
  });
  return static_cast<double>(memory.size()) * 4 / seconds * 1e-9;
}

double flops_of(const GemmProblem& p) {
  return 2.0 * static_cast<double>(p.m * p.n * p.k * p.batch[2] * p.batch[3]);
}

void print_compute(const char* name, const GemmProblem& p) {
  const int repeats = std::clamp(static_cast<int>(1e9 / flops_of(p)), 1, 100);
  const double gflops = flops_of(p) / best_seconds(7, repeats, [&](int) { cpu::gemm(p); }) * 1e-9;
  fmt::print("{:<22} {:>5} x {:>5} x {:>5} {:<9} {:6.1f} GFLOP/s, {:.2f} of the peak\n", name, p.m,
             p.n, p.k, dtype_name(p.b.dtype), gflops, gflops / peak_gflops() / num_threads());
}

// Weights [n, k] or [k, n].
GemmMatrix weights(std::span<float> memory, DType dtype, bool transposed, int64_t n, int64_t k) {
  return {memory.data(), dtype, transposed ? 1 : n, transposed ? k : 1, {}};
}

void large_products(std::span<float> memory, std::span<float> a, std::span<float> c) {
  for (const int64_t n : {1024, 2048, 4096}) {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      for (const bool transposed : {false, true}) {
        GemmProblem p{.m = 512, .n = n, .k = n};
        p.a = {a.data(), dtype, n, 1, {}};
        p.b = weights(memory, dtype, transposed, n, n);
        p.c = {c.data(), dtype, n, 1, {}};
        print_compute(transposed ? "layer, weights [n, k]" : "layer, weights [k, n]", p);
      }
    }
  }
}

// Goes through eight matrices in turn, so that the weights come from memory.
void few_rows(std::span<float> memory, std::span<float> a, std::span<float> c) {
  const double read = read_gbytes_per_second(memory);
  for (const int64_t m : {1, 4, 8}) {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      for (const bool transposed : {false, true}) {
        GemmProblem p{.m = m, .n = 4096, .k = 2048};
        p.a = {a.data(), dtype, p.k, 1, {}};
        p.b = weights(memory, dtype, transposed, p.n, p.k);
        p.c = {c.data(), dtype, p.n, 1, {}};
        const auto bytes = static_cast<size_t>(p.n * p.k) * dtype_bytes(dtype);
        const double seconds = best_seconds(7, 16, [&](int i) {
          p.b.data = reinterpret_cast<char*>(memory.data()) + static_cast<size_t>(i % 8) * bytes;
          cpu::gemm(p);
        });
        const double gbytes = static_cast<double>(bytes) / seconds * 1e-9;
        fmt::print("m = {} weights {} {:<9} {:5.1f} GB/s, {:.2f} of reading on one thread\n", m,
                   transposed ? "[n, k]" : "[k, n]", dtype_name(dtype), gbytes, gbytes / read);
      }
    }
  }
}

// The products of attention with materialised scores: batch 2, 8 heads of 64.
void attention_products(std::span<float> memory, std::span<float> a, std::span<float> c) {
  constexpr int64_t kBatch = 2, kHeads = 8, kDim = 64;
  for (const int64_t seqlen : {256, 1024}) {
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      const int64_t row = kHeads * kDim, one = seqlen * row, square = seqlen * seqlen;
      const GemmMatrix tokens = {a.data(), dtype, row, 1, {0, 0, one, kDim}};
      const GemmMatrix keys = {a.data(), dtype, 1, row, {0, 0, one, kDim}};
      const GemmMatrix out = {c.data(), dtype, row, 1, {0, 0, one, kDim}};
      const GemmMatrix p_rows = {memory.data(), dtype, seqlen, 1, {0, 0, kHeads * square, square}};
      const GemmMatrix p_columns = {
          memory.data(), dtype, 1, seqlen, {0, 0, kHeads * square, square}};
      GemmProblem p{.m = seqlen, .n = seqlen, .k = kDim, .batch = {1, 1, kBatch, kHeads}};
      p.alpha = 0.125f;
      p.a = tokens, p.b = keys, p.c = p_rows;
      print_compute("scores q k^T", p);
      p.alpha = 1.0f, p.n = kDim, p.k = seqlen;
      p.a = p_rows, p.b = tokens, p.c = out;
      print_compute("out p v", p);
      p.a = p_columns;
      print_compute("dv p^T dout", p);
    }
  }
}

}  // namespace
}  // namespace flashmha

int main(int argc, char** argv) {
  using flashmha::Tensor;
  flashmha::set_num_threads(argc > 1 ? std::atoi(argv[1]) : 1);
  const auto floats = [](const Tensor& tensor) {
    return std::span<float>(tensor.as<float>(), static_cast<size_t>(tensor.size(0)));
  };
  const Tensor weights = Tensor::zeros({64 << 20}, flashmha::DType::float32);
  const Tensor left = Tensor::zeros({4 << 20}, flashmha::DType::float32);
  const Tensor out = Tensor::zeros({4 << 20}, flashmha::DType::float32);
  const std::span<float> memory = floats(weights), a = floats(left), c = floats(out);
  std::ranges::fill(memory, 0.01f);
  std::ranges::fill(a, 0.5f);
  fmt::print("{}: peak {:.1f} GFLOP/s, read {:.1f} GB/s (one thread)\n",
             flashmha::cpu::kernels().name, flashmha::peak_gflops(),
             flashmha::read_gbytes_per_second(memory));
  flashmha::large_products(memory, a, c);
  flashmha::few_rows(memory, a, c);
  flashmha::attention_products(memory, a, c);
}
