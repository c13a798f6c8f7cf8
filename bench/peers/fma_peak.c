// The fp32 FMA rate of one core in GFLOP/s: 12 independent accumulators in registers, the widest
// vectors that the processor has, best of 20 rounds. Prints one number.
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

enum { kRounds = 20, kSteps = 4000000, kAccumulators = 12 };

static volatile float sink;  // keeps the results alive

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

__attribute__((target("avx512f"))) static void run_avx512(void) {
  __m512 sum[kAccumulators], x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(1.0f);
  for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm512_set1_ps((float)i);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm512_fmadd_ps(sum[i], x, y);
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  sink = _mm512_cvtss_f32(sum[0]);
}

__attribute__((target("avx2,fma"))) static void run_avx2(void) {
  __m256 sum[kAccumulators], x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(1.0f);
  for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm256_set1_ps((float)i);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm256_fmadd_ps(sum[i], x, y);
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);
  sink = _mm256_cvtss_f32(sum[0]);
}

int main(void) {
  const int wide = __builtin_cpu_supports("avx512f");
  double best = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    const double start = now_s();
    if (wide) run_avx512(); else run_avx2();
    const double seconds = now_s() - start;
    if (seconds < best) best = seconds;
  }
  printf("%.1f\n", 2.0 * kAccumulators * (wide ? 16 : 8) * kSteps / best * 1e-9);
  return 0;
}
