// The layers' matrix product beside oneDNN's, y = x W^T as a linear layer computes it, in one run.
// Not part of the build, because nothing else needs oneDNN (Debian: libdnnl-dev). After `make
// program`:
//
//   g++ -std=c++20 -O2 -Iinclude -Isrc bench/peers/onednn_matmul.cpp build/cpu/libflashmha.a
//       -ldnnl -lpthread -o build/onednn_matmul
//   OMP_NUM_THREADS=1 taskset -c 0 build/onednn_matmul
//
// Prints medians of interleaved runs in GFLOP/s and as shares of the float32 FMA peak of one
// thread.
#include <dnnl.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "cpu/isa.h"
#include "flashmha/device.h"
#include "flashmha/ops.h"
#include "flashmha/random.h"

namespace {

using flashmha::DType;
using flashmha::Tensor;

constexpr int kRepetitions = 15;

template <class Function>
double seconds(Function&& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double peak_gflops() {
  static float sink = 1.0f;
  constexpr std::int64_t kRounds = 400000;
  std::int64_t operations = 0;
  const double time =
      seconds([&] { operations = flashmha::cpu::kernels().probe->fma(kRounds, &sink); });
  return static_cast<double>(operations) / time * 1e-9;
}

void compare(std::int64_t m, std::int64_t n) {
  const std::int64_t k = n;
  const Tensor x = Tensor::empty({m, k}, DType::float32);
  const Tensor w = Tensor::empty({n, k}, DType::float32);
  const Tensor y = Tensor::empty({m, n}, DType::float32);
  flashmha::model::fill_normal(x, 1);
  flashmha::model::fill_normal(w, 2);
  const Tensor x16 = flashmha::cast(x, DType::bfloat16);
  const Tensor w16 = flashmha::cast(w, DType::bfloat16);
  const Tensor y16 = Tensor::empty({m, n}, DType::bfloat16);

  std::vector<double> peak, ours, ours16, onednn;
  const double gflop = 2e-9 * static_cast<double>(m * n * k);
  for (int i = 0; i < kRepetitions; ++i) {
    peak.push_back(peak_gflops());
    ours.push_back(gflop / seconds([&] { flashmha::ops::matmul(x, w.view().transpose(0, 1), y); }));
    ours16.push_back(gflop /
                     seconds([&] { flashmha::ops::matmul(x16, w16.view().transpose(0, 1), y16); }));
    onednn.push_back(gflop / seconds([&] {
                       dnnl_sgemm('N', 'T', m, n, k, 1.0f, x.as<float>(), k, w.as<float>(), k, 0.0f,
                                  y.as<float>(), n);
                     }));
  }
  const double top = median(peak);
  std::printf("%4lld %5lld  %6.1f %.2f  %6.1f %.2f  %6.1f %.2f  %6.1f\n", static_cast<long long>(m),
              static_cast<long long>(n), median(ours), median(ours) / top, median(ours16),
              median(ours16) / top, median(onednn), median(onednn) / top, top);
}

}  // namespace

int main() {
  flashmha::set_num_threads(1);
  std::printf("   m   n=k  float32       bfloat16      oneDNN float32  peak (%s)\n",
              flashmha::cpu::kernels().name);
  for (const std::int64_t n : {1024, 2048, 4096}) {
    for (const std::int64_t m : {1, 8, 64, 512})
      compare(m, n);
  }
}
