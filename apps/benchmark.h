// The benchmark in three levels: attention function, attention layer, whole model. Each level
// measures plain and flash attention side by side.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "command.h"
#include "flashmha/model.h"
#include "measure.h"
#include "progress.h"

namespace flashmha::app {

struct BenchmarkFlags {
  CommonFlags common;
  std::int64_t batch_size = 2;
  std::int64_t seq_length = 256;
  std::string dtype = "bfloat16";
  std::string device = "cpu";
  bool causal = true;
  std::int64_t layers = 0;  // this and the following: set from model::default_config()
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
  std::int64_t vocab = 0;
  std::int64_t new_tokens = 32;
  int repetitions = 7;
  std::uint64_t seed = 1;
};

// The model that the flags describe.
model::ModelConfig model_config(const BenchmarkFlags& flags, model::AttentionKind kind);

// One figure for plain and for flash: a time in ms or a memory in bytes.
struct Comparison {
  std::string level;  // "function", "layer", "model"
  std::string name;   // "training", "training_memory"
  std::string unit;   // "ms" or "bytes"
  Spread plain;
  Spread flash;
  Spread ratio;  // plain / flash: above 1, flash is better
};

using Comparisons = std::vector<Comparison>;

// The work of both kinds, timed in turn.
Comparison compare_times(std::string level, std::string name, const std::function<void()>& plain,
                         const std::function<void()>& flash, int repetitions);
// Two byte counts.
Comparison compare_memory(std::string level, std::string name, std::size_t plain_bytes,
                          std::size_t flash_bytes);

// Number of Comparisons that each level gives, for the progress.
inline constexpr int kFunctionSteps = 4;
inline constexpr int kLayerSteps = 4;
inline constexpr int kModelSteps = 5;

// flash_attn_func against nn::plain_attention: forward, backward, both, and their memory.
Comparisons benchmark_function(const BenchmarkFlags& flags, Progress& progress);
// FlashMultiHeadAttention against MultiHeadAttention, projections and rotary included.
Comparisons benchmark_layer(const BenchmarkFlags& flags, Progress& progress);
// The model: training, its memory, inference, its memory, generation.
Comparisons benchmark_model(const BenchmarkFlags& flags, Progress& progress);

// `flashmha benchmark attention`: the kernels alone over a grid (benchmark_attention.cpp).
void add_benchmark_attention(CLI::App& benchmark, ExitCode& exit_code);

}  // namespace flashmha::app
