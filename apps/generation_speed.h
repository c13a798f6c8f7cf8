// How fast tokens come, and how that compares with reading the weights.
#pragma once

#include <chrono>
#include <cstdint>

#include "command.h"
#include "flashmha/model.h"

namespace flashmha::app {

// Bytes of parameters that one step reads, whatever the number of rows: all but an embedding of
// which only the rows of the tokens are looked up.
std::int64_t weight_bytes_of_step(model::CausalLM& model);

class GenerationClock {
 public:
  // Call it at the end of every step.
  void end_step();

  std::int64_t num_steps() const { return num_steps_; }
  double first_step_ms() const;      // the prompts, and their first tokens
  double ms_per_later_step() const;  // 0 if there was none

 private:
  using Clock = std::chrono::steady_clock;

  Clock::time_point start_ = Clock::now();
  Clock::time_point first_;
  Clock::time_point last_;
  std::int64_t num_steps_ = 0;
};

struct GenerationSpeed {
  std::int64_t num_tokens = 0;  // new ones, of all rows
  std::int64_t num_steps = 0;
  double first_token_ms = 0.0;
  double ms_per_step = 0.0;        // of those after the first; 0 if there was none
  double tokens_per_second = 0.0;  // of the steps after the first, over all rows
  std::int64_t weight_bytes = 0;   // that a step reads
  double weight_gbps = 0.0;        // weight_bytes / ms_per_step
  // Of reading as many bytes (256 MiB at most) with all threads; on a GPU of copying, bytes read
  // and bytes written together.
  double memory_gbps = 0.0;
  bool copies = false;
  double memory_share = 0.0;  // weight_gbps / memory_gbps
};

// Measures the memory of the model's device right after the generation. num_tokens and
// num_first_tokens: of all rows, in all steps and in the first.
GenerationSpeed measure_speed(const GenerationClock& clock, std::int64_t num_tokens,
                              std::int64_t num_first_tokens, std::int64_t weight_bytes,
                              Device device);

// Two lines on stderr.
void print_speed(const GenerationSpeed& speed);
Json speed_json(const GenerationSpeed& speed);

}  // namespace flashmha::app
