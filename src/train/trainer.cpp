// The loop of training.
#include "flashmha/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/located.h"
#include "flashmha/checkpoint.h"
#include "io/file.h"
#include "train/curve.h"
#include "train/log.h"
#include "train/run_directory.h"
#include "train/schedule.h"
#include "train/state.h"

namespace flashmha::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool is_due(std::int64_t every, std::int64_t step) {
  return every > 0 && step % every == 0;
}

bool all_finite(const TensorView& tensor) {
  const Located located(tensor);
  const Tensor values = cast(located, DType::float32);
  const float* data = values.as<float>();
  return std::all_of(data, data + values.numel(), [](float x) { return std::isfinite(x); });
}

void check_vocabulary(const model::CausalLM& model, const PackedDataset* dataset) {
  if (!dataset) return;
  const std::int32_t largest = dataset->corpus().largest_token();
  check(largest < model.config().vocab_size,
        "[Trainer] the data has token {}, the model's vocabulary ends before {}: is it the model's "
        "tokenizer?",
        largest, model.config().vocab_size);
}

// "a, b and 7 more".
std::string list_names(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 4;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += (i > 0 ? ", " : "") + names[i];
  if (names.size() > kShown) text += fmt::format(" and {} more", names.size() - kShown);
  return text;
}

}  // namespace

Trainer::Trainer(model::CausalLM& model, const PackedDataset& training,
                 const PackedDataset* evaluation, TrainerOptions options,
                 TrainerCallbacks callbacks)
    : model_(model),
      training_(training),
      evaluation_(evaluation),
      options_(resolved(std::move(options))),
      callbacks_(std::move(callbacks)),
      gradients_(model),
      optimizer_(model, options_.optimizer) {
  check_vocabulary(model, &training);
  check_vocabulary(model, evaluation);
  check(model.config().dtype != DType::float16,
        "[Trainer] gradients of float16 models underflow: train in bfloat16 or float32");
  const std::int64_t longest = std::numeric_limits<std::int32_t>::max();
  check(options_.batch_size <= longest / training.seq_length(),
        "[Trainer] batch_size ({}) times seq_length ({}) must be below 2^31", options_.batch_size,
        training.seq_length());
  if (!options_.output.empty()) directory_ = std::make_unique<RunDirectory>(options_.output);
}

Trainer::~Trainer() = default;

std::int64_t Trainer::resume() {
  check(directory_ != nullptr, "[Trainer.resume] options.output must be given");
  directory_->clean();
  resumed_ = true;
  const std::optional<std::string> checkpoint = latest_checkpoint(options_.output);
  if (!checkpoint) return 0;
  check_same_model(*checkpoint, model_.config(), (directory_->path() / ".config.tmp").string());
  const Progress progress = load_state(*checkpoint, settings_of(options_, training_), optimizer_);
  const auto saved = model::load_pretrained(*checkpoint, {.dtype = model_.config().dtype});
  copy_weights(*saved, model_);
  step_ = progress.step;
  num_tokens_ = progress.num_tokens;
  return step_;
}

TrainingResult Trainer::run() {
  if (directory_) {
    check(resumed_ || directory_->is_empty(),
          "[Trainer] '{}' holds a run already: resume it, or choose another directory",
          options_.output);
    directory_->start_log(step_ > 0 ? step_ : -1);
  }
  TrainingResult result{.step = step_};
  if (step_ == 0) {
    StepRecord before{.eval_loss = evaluate()};
    if (before.eval_loss && !report(before, result)) return result;
  }
  const std::int64_t first_tokens = num_tokens_;
  double seconds = 0.0;
  while (step_ < options_.num_steps && result.end == TrainingResult::End::finished) {
    const Clock::time_point start = Clock::now();
    StepRecord record{.step = step_ + 1};
    result.message = make_step(record);
    if (!result.message.empty()) {
      result.end = TrainingResult::End::diverged;
      break;
    }
    const double step_seconds = seconds_since(start);
    seconds += step_seconds;
    record.tokens_per_second = static_cast<double>(record.num_tokens - num_tokens_) / step_seconds;
    num_tokens_ = record.num_tokens;
    step_ = record.step;
    const bool is_last = step_ == options_.num_steps;
    if (is_last || is_due(options_.eval_every, step_)) record.eval_loss = evaluate();
    if (!report(record, result)) break;
    const bool stops = !is_last && callbacks_.should_stop && callbacks_.should_stop();
    if (is_last || stops || is_due(options_.save_every, step_)) save();
    if (stops) result.end = TrainingResult::End::stopped;
  }
  draw_curve();
  result.num_tokens = num_tokens_;
  if (seconds > 0.0) {
    result.tokens_per_second = static_cast<double>(num_tokens_ - first_tokens) / seconds;
  }
  result.peak_bytes = memory_stats(model_.config().device).peak_bytes;
  return result;
}

// Row r of all epochs together is row r % num_sequences in the order of epoch r / num_sequences.
std::vector<std::int64_t> Trainer::next_sequences(std::int64_t part) const {
  const std::int64_t count = training_.num_sequences();
  const std::int64_t first = (step_ * options_.accumulate + part) * options_.batch_size;
  std::vector<std::int64_t> sequences;
  for (std::int64_t row = first; row < first + options_.batch_size; ++row) {
    const Shuffle order(count, options_.seed, static_cast<std::uint64_t>(row / count));
    sequences.push_back(order(row % count));
  }
  return sequences;
}

std::string Trainer::make_step(StepRecord& record) {
  std::int64_t num_targets = 0;
  std::vector<std::vector<std::int64_t>> parts;
  for (std::int64_t part = 0; part < options_.accumulate; ++part) {
    parts.push_back(next_sequences(part));
    for (const std::int64_t sequence : parts.back())
      num_targets += training_.num_targets(sequence);
  }
  double loss = 0.0;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    const Batch batch = training_.batch(parts[part]);
    model::ModelInputs inputs = batch.inputs();
    inputs.training = true;
    inputs.recompute = options_.recompute;
    inputs.dropout_seed = options_.seed;
    inputs.dropout_offset =
        static_cast<std::uint64_t>(step_ * options_.accumulate) + static_cast<std::uint64_t>(part);
    const double share = static_cast<double>(batch.num_targets) / static_cast<double>(num_targets);
    loss += share * gradients_(inputs, batch.targets, static_cast<float>(share)).mean;
  }
  if (!std::isfinite(loss)) {
    return describe_anomaly(record.step, fmt::format("the loss is {}, so it was not made", loss));
  }
  record.learning_rate = learning_rate_at(options_, record.step);
  optimizer_.set_learning_rate(static_cast<float>(record.learning_rate));
  record.gradient_norm = optimizer_.step();
  if (!std::isfinite(record.gradient_norm)) {
    return describe_anomaly(
        record.step,
        fmt::format("the gradient's norm is {}, so it was not made", record.gradient_norm));
  }
  record.loss = loss;
  record.num_tokens = num_tokens_ + num_targets;
  return {};
}

std::string Trainer::describe_anomaly(std::int64_t step, const std::string& what) {
  std::vector<std::string> weights;
  std::vector<std::string> gradients;
  model_.visit([&](const std::string& name, nn::Parameter& parameter) {
    if (!all_finite(parameter.value)) weights.push_back(name);
    if (parameter.gradient.defined() && !all_finite(parameter.gradient)) gradients.push_back(name);
  });
  std::string text = fmt::format("step {}: {}", step, what);
  if (!weights.empty())
    text += fmt::format("; weights that are not finite: {}", list_names(weights));
  if (!gradients.empty()) {
    text += fmt::format("; gradients that are not finite: {}", list_names(gradients));
  }
  return text;
}

std::optional<double> Trainer::evaluate() const {
  if (!evaluation_) return {};
  const std::int64_t count = evaluation_->num_sequences();
  const Shuffle order(count, /*seed=*/0, /*epoch=*/0);
  const std::int64_t num_used = std::min(count, options_.max_eval_sequences);
  double sum = 0.0;
  std::int64_t num_targets = 0;
  for (std::int64_t first = 0; first < num_used; first += options_.batch_size) {
    std::vector<std::int64_t> sequences;
    for (std::int64_t row = first; row < std::min(num_used, first + options_.batch_size); ++row)
      sequences.push_back(order(row));
    const Batch batch = evaluation_->batch(sequences);
    const model::Loss loss = compute_loss(model_, batch.inputs(), batch.targets);
    sum += loss.mean * static_cast<double>(loss.num_tokens);
    num_targets += loss.num_tokens;
  }
  return sum / static_cast<double>(num_targets);
}

bool Trainer::report(StepRecord& record, TrainingResult& result) {
  if (record.eval_loss && !std::isfinite(*record.eval_loss)) {
    result.end = TrainingResult::End::diverged;
    result.message = describe_anomaly(
        record.step, fmt::format("the loss on held-out data is {}", *record.eval_loss));
    return false;
  }
  if (directory_) directory_->append_to_log(format_record(record));
  result.step = record.step;
  if (record.loss) result.loss = record.loss;
  if (record.eval_loss) result.eval_loss = record.eval_loss;
  if (callbacks_.on_step) callbacks_.on_step(record);
  return true;
}

void Trainer::save() {
  if (!directory_) return;
  directory_->publish(step_, options_.keep, [&](const std::string& folder) {
    model::save_pretrained(model_, folder);
    for (const std::string& path : options_.companions) {
      const std::string name = std::filesystem::path(path).filename().string();
      io::write_text_file((std::filesystem::path(folder) / name).string(),
                          io::read_text_file(path, std::numeric_limits<std::size_t>::max()));
    }
    save_state(folder, {.step = step_, .num_tokens = num_tokens_}, settings_of(options_, training_),
               optimizer_);
  });
  if (callbacks_.on_checkpoint) callbacks_.on_checkpoint(directory_->checkpoint_path(step_));
}

void Trainer::draw_curve() const {
  if (!directory_) return;
  const std::vector<StepRecord> records = read_log(directory_->log_path(), step_);
  io::write_text_file((directory_->path() / "loss.svg").string(), draw_loss_curve(records));
}

}  // namespace flashmha::train
