// The benchmark in three levels: attention function, attention layer, whole model. Each level
// measures plain and flash attention side by side.
#pragma once

#include <cstdint>
#include <string>

#include "command.h"
#include "comparison.h"
#include "flashmha/model.h"
#include "progress.h"

namespace flashmha::app {

struct BenchmarkFlags {
  CommonFlags common;
  std::int64_t batch_size = 2;
  std::int64_t seq_length = 256;
  DType dtype = DType::bfloat16;
  std::string device = "cpu";
  bool causal = true;
  std::int64_t layers = 0;  // this and the following: set from model::default_config()
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;  // 0: heads
  std::int64_t head_dim = 0;
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
  std::int64_t vocab = 0;
  std::int64_t new_tokens = 32;
  std::string level = "all";
  int repetitions = 7;
  std::uint64_t seed = 1;
};

// How often is measured, and where.
Rounds rounds_of(const BenchmarkFlags& flags);

// Adds all flags but the common ones, and sets their defaults.
void add_benchmark_flags(CLI::App& command, BenchmarkFlags& flags);

// --dtype float32|bfloat16|float16.
void add_dtype_flag(CLI::App& command, DType& dtype);

// The model that the flags describe.
model::ModelConfig model_config(const BenchmarkFlags& flags, model::AttentionKind kind);

// Comparisons that each level gives: the steps of the progress.
inline constexpr int kFunctionSteps = 4;
inline constexpr int kLayerSteps = 4;
inline constexpr int kModelSteps = 5;

// flash_attn_func against nn::plain_attention: forward, backward, both, and their memory.
Comparisons benchmark_function(const BenchmarkFlags& flags, Progress& progress);
// FlashMultiHeadAttention against MultiHeadAttention, projections and rotary included.
Comparisons benchmark_layer(const BenchmarkFlags& flags, Progress& progress);
// The model: training, its memory, inference, its memory, generation.
Comparisons benchmark_model(const BenchmarkFlags& flags, Progress& progress);

// `flashmha benchmark attention`: the kernels alone over a grid.
void add_benchmark_attention(CLI::App& benchmark, ExitCode& exit_code);

}  // namespace flashmha::app
