// A grid of attention problems, and what is measured of each.
#pragma once

#include <cstdint>
#include <vector>

#include "command.h"
#include "kernel_case.h"

namespace flashmha::app {

struct GridFlags {
  CommonFlags common;
  std::vector<Pass> passes = {Pass::forward, Pass::backward, Pass::decode};
  std::vector<DType> dtypes = {DType::float32, DType::bfloat16, DType::float16};
  std::vector<std::int64_t> head_dims = {64, 128};
  std::vector<std::int64_t> seq_lengths = {256, 1024, 4096};
  std::vector<bool> causal = {false, true};
  std::int64_t batch_size = 1;
  std::int64_t heads = 8;
  std::int64_t kv_heads = 0;     // 0: heads
  std::int64_t cache_mib = 256;  // keys and values of a decoding step, at least
  bool plain = false;
  bool csv = false;
  int repetitions = 5;
};

// All combinations. Decoding comes once for both masks (a single query sees all keys), and with as
// many sequences as fill 256 MiB: keys and values must come from memory, as in a model.
std::vector<KernelShape> grid_of(const GridFlags& flags);

// One row of the report: the shape, and of its speed on one thread and on all
//   one_thread_gflops, threads_gflops           decode: _gbps, of keys and values read
//   one_thread_peak_share, threads_peak_share   of float32 FMA (decode: of reading memory) on as
//                                               many threads, measured in turn with the kernel
//   scaling_ratio                               all threads over one
// and with --plain its time and extra memory next to plain attention's, on all threads.
Json measure_kernel(const KernelShape& shape, const GridFlags& flags);

}  // namespace flashmha::app
