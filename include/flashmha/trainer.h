// The training of a CausalLM on packed text: steps, schedule, evaluation, log, checkpoints.
//
//   train::Trainer trainer(model, training, &evaluation, {.output = "run", .num_steps = 1000});
//   trainer.resume();  // goes on where an earlier run of these options was interrupted
//   train::TrainingResult result = trainer.run();
//
// The output directory:
//   log.jsonl           one JSON object a step
//   loss.svg            the curve of that, drawn at the end
//   checkpoint-STEP/    a model directory as Hugging Face's, and the state of the training:
//     config.json, model.safetensors, tokenizer.json, ...
//     training_state.safetensors   moments and master weights of every parameter, float32
//     training_state.json          the step, the tokens seen and the settings of the run
// A checkpoint appears under its name when it is complete and on the disk; names that begin with a
// dot are unfinished. The process may be killed at any moment.
//
// What a step computes depends on the settings, the data and the step's number only: not on the
// number of threads, nor on when the run was interrupted. So a resumed run ends with the bits of
// one that was not, on CPUs with the same instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "flashmha/dataset.h"
#include "flashmha/training.h"

namespace flashmha::train {

struct TrainerOptions {
  std::string output{};         // directory; empty: nothing is written
  std::int64_t num_steps = 0;   // of the optimiser; must be given
  std::int64_t batch_size = 8;  // sequences that go through the model together
  std::int64_t accumulate = 1;  // batches of one step; its gradient is the mean over all tokens
  // learning_rate is the highest one: after the warm-up.
  model::OptimizerOptions optimizer{};
  std::optional<float> min_learning_rate{};    // of the last step; default: a tenth of the highest
  std::optional<std::int64_t> warmup_steps{};  // default: a tenth of the steps, 100 at most
  bool recompute = false;                      // see model::ModelInputs: less memory, same bits
  std::uint64_t seed = 1;                      // of the order of the data, and of dropout
  std::int64_t eval_every = 0;                 // steps; 0: before the first and after the last step
  std::int64_t max_eval_sequences = 64;        // always the same ones
  std::int64_t save_every = 0;                 // steps; 0: after the last step
  std::int64_t keep = 2;                       // checkpoints; 0: all
  std::vector<std::string> companions{};       // files that every checkpoint gets a copy of
};

// The learning rate of a step (from 1): rising linearly to optimizer.learning_rate at the end of
// the warm-up, then half a cosine down to min_learning_rate at the last step.
float learning_rate_at(const TrainerOptions& options, std::int64_t step);

// A line of log.jsonl.
struct StepRecord {
  std::int64_t step = 0;         // 0: before training, with eval_loss only
  std::optional<double> loss{};  // mean over the step's tokens, before its update
  double learning_rate = 0.0;
  double gradient_norm = 0.0;         // before clipping
  std::int64_t num_tokens = 0;        // targets seen since the start, this step's included
  double tokens_per_second = 0.0;     // of this step
  std::optional<double> eval_loss{};  // mean over the tokens of the held-out sequences
};

struct TrainerCallbacks {
  std::function<void(const StepRecord&)> on_step{};
  std::function<void(const std::string& path)> on_checkpoint{};
  // Asked between steps; true: a checkpoint is written and run() returns.
  std::function<bool()> should_stop{};
};

struct TrainingResult {
  enum class End : std::uint8_t {
    finished,  // all steps are done
    stopped,   // should_stop said so
    diverged,  // a loss or a gradient is not finite: the step was not made
  };

  End end = End::finished;
  std::int64_t step = 0;              // the last one that was made
  std::optional<double> loss{};       // of that step
  std::optional<double> eval_loss{};  // the last one
  std::int64_t num_tokens = 0;        // since the start, interrupted runs included
  double tokens_per_second = 0.0;     // of this run's steps, without evaluation and checkpoints
  std::size_t peak_bytes = 0;         // of tensors and workspaces
  std::string message{};              // diverged: the step and the tensors that are not finite
};

class RunDirectory;

// model and the datasets must outlive the trainer. Errors are invalid_argument: options that make
// no sense together; tokens that the model's vocabulary does not have; an output directory that
// holds another run, or that another process writes to.
class Trainer {
 public:
  // evaluation may be null.
  Trainer(model::CausalLM& model, const PackedDataset& training, const PackedDataset* evaluation,
          TrainerOptions options, TrainerCallbacks callbacks = {});
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;
  ~Trainer();

  // Makes model and optimiser those of the newest checkpoint in options.output, and returns its
  // step; 0 if there is none. Throws invalid_argument, naming what differs, if that run had another
  // model, other data or other settings. These may change: recompute, eval_every,
  // max_eval_sequences, save_every, keep, companions, the number of threads.
  std::int64_t resume();

  // Trains up to num_steps. Throws io if the disk is full, say: checkpoints that there are stay.
  TrainingResult run();

 private:
  // One step; what is wrong with it if it could not be made.
  std::string make_step(StepRecord& record);
  std::string describe_anomaly(std::int64_t step, const std::string& what);
  std::optional<double> evaluate() const;
  // Evaluation, log, callback.
  bool report(StepRecord& record, TrainingResult& result);
  void save();
  void draw_curve() const;
  // The sequences of micro-batch `part` of the next step.
  std::vector<std::int64_t> next_sequences(std::int64_t part) const;

  model::CausalLM& model_;
  const PackedDataset& training_;
  const PackedDataset* evaluation_;
  TrainerOptions options_;
  TrainerCallbacks callbacks_;
  model::GradientPass gradients_;
  model::AdamW optimizer_;
  std::unique_ptr<RunDirectory> directory_;  // null without output
  std::int64_t step_ = 0;
  std::int64_t num_tokens_ = 0;
  bool resumed_ = false;
};

// The complete checkpoint of the highest step in the output directory of a run, if there is one.
std::optional<std::string> latest_checkpoint(const std::string& output);

}  // namespace flashmha::train
