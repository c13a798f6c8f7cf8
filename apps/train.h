// What the parts of `flashmha train` share.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "command.h"
#include "flashmha/dtype.h"
#include "flashmha/model.h"
#include "flashmha/trainer.h"

namespace flashmha::app {

struct TrainFlags {
  CommonFlags common;

  std::vector<std::string> data;
  std::string document_separator;
  double eval_fraction = 0.05;

  std::string model;      // a directory; empty: from zero
  std::string tokenizer;  // a directory; empty: the model's, or bytes
  std::optional<DType> dtype;
  Device device;
  // Shape of a model from zero; 0: from the others.
  std::int64_t layers = 4;
  std::int64_t hidden = 512;
  std::int64_t heads = 8;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t intermediate = 0;

  bool resume = false;
  std::int64_t seq_length = 512;
  double epochs = 1.0;                                 // when num_steps is 0
  std::optional<float> learning_rate;                  // default: 1e-3, with a model 5e-5
  std::optional<std::int64_t> eval_every, save_every;  // default: ten in the run
  train::TrainerOptions options{.output = "trained"};
};

void add_train_flags(CLI::App& command, TrainFlags& flags);

// The shape that the flags describe, for a vocabulary.
model::ModelConfig train_model_config(const TrainFlags& flags, std::int64_t vocab_size);

// What training says while it runs, on stderr. On a terminal a bar that rewrites itself; elsewhere
// a line for every evaluation, and one at least every 10 seconds.
class TrainingProgress {
 public:
  TrainingProgress(std::int64_t first_step, std::int64_t num_steps);
  TrainingProgress(const TrainingProgress&) = delete;
  TrainingProgress& operator=(const TrainingProgress&) = delete;
  ~TrainingProgress() { clear(); }

  void show(const train::StepRecord& record);

 private:
  using Clock = std::chrono::steady_clock;

  void clear() const;

  std::int64_t first_step_;
  std::int64_t num_steps_;
  bool is_terminal_;
  std::optional<double> eval_loss_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_print_{};
};

}  // namespace flashmha::app
