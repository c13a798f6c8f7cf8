// Schedule, accumulation, evaluation, log, checkpoints, and what stops a run.
#include "flashmha/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numbers>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "flashmha/checkpoint.h"
#include "flashmha/safetensors.h"
#include "flashmha/sanity.h"
#include "tests/core/expect_error.h"
#include "tests/io/folder.h"
#include "tests/model/fixture.h"
#include "tests/train/fixture.h"
#include "train/curve.h"
#include "train/log.h"

namespace flashmha {
namespace {

namespace fs = std::filesystem;

using namespace test;
using model::CausalLM;
using train::PackedDataset;
using train::StepRecord;
using train::Trainer;
using train::TrainerOptions;
using train::TrainingResult;

// A model of tiny_config with random weights, and data that it can learn: documents that repeat a
// few tokens.
struct Task {
  CausalLM model;
  PackedDataset training;
  PackedDataset evaluation;

  explicit Task(DType dtype = DType::float32, std::int64_t seq_length = 16)
      : model(config(dtype)),
        training(repeating_corpus(40, 30, 7), seq_length),
        evaluation(repeating_corpus(4, 30, 7), seq_length) {
    model.init_weights(3);
  }

  static model::ModelConfig config(DType dtype) {
    model::ModelConfig config = tiny_config();
    config.dtype = dtype;
    return config;
  }
};

void expect_equal_weights(CausalLM& a, CausalLM& b) {
  const NamedTensors others = weights_of(b);
  for (const auto& [name, view] : weights_of(a)) {
    EXPECT_EQ(std::memcmp(view.data, others.at(name).data, view.bytes()), 0) << name;
  }
}

TEST(Schedule, rises_linearly_then_falls_by_a_cosine) {
  const TrainerOptions options{.num_steps = 110,
                               .optimizer = {.learning_rate = 0.5f},
                               .min_learning_rate = 0.1f,
                               .warmup_steps = 10};
  EXPECT_FLOAT_EQ(learning_rate_at(options, 1), 0.05f);
  EXPECT_FLOAT_EQ(learning_rate_at(options, 10), 0.5f);
  EXPECT_FLOAT_EQ(learning_rate_at(options, 60), 0.3f);
  EXPECT_FLOAT_EQ(learning_rate_at(options, 35), 0.3f + 0.2f * std::numbers::sqrt2_v<float> / 2.0f);
  EXPECT_FLOAT_EQ(learning_rate_at(options, 110), 0.1f);
  // Defaults: a tenth of the steps, a tenth of the rate.
  const TrainerOptions defaults{.num_steps = 50, .optimizer = {.learning_rate = 1.0f}};
  EXPECT_FLOAT_EQ(learning_rate_at(defaults, 1), 0.2f);
  EXPECT_FLOAT_EQ(learning_rate_at(defaults, 5), 1.0f);
  EXPECT_FLOAT_EQ(learning_rate_at(defaults, 50), 0.1f);
  // Only warm-up.
  EXPECT_FLOAT_EQ(train::learning_rate_at({.num_steps = 4, .warmup_steps = 4}, 4), 1e-3f);
}

TEST(Trainer, refuses_options_that_make_no_sense) {
  Task task;
  const auto refuses = [&](const TrainerOptions& options, const std::string& piece) {
    expect_error(ErrorCode::invalid_argument, {"[Trainer]", piece},
                 [&] { Trainer(task.model, task.training, nullptr, options); });
  };
  refuses({}, "num_steps (0) must be positive");
  refuses({.num_steps = 1, .batch_size = 0}, "batch_size (0)");
  refuses({.num_steps = 1, .batch_size = std::int64_t{1} << 30}, "must be below 2^31");
  refuses({.num_steps = 1, .accumulate = -1}, "accumulate (-1)");
  refuses({.num_steps = 1, .optimizer = {.learning_rate = 0.0f}}, "learning_rate (0)");
  refuses({.num_steps = 1, .min_learning_rate = 2.0f}, "min_learning_rate (2)");
  refuses({.num_steps = 5, .warmup_steps = 6}, "warmup_steps (6) must be in [0, num_steps (5)]");
  refuses({.num_steps = 5, .keep = -1}, "keep (-1)");

  const PackedDataset foreign(repeating_corpus(4, 30, 8, /*vocab_size=*/51), 16);
  expect_error(ErrorCode::invalid_argument, {"the data has token 50", "ends before 50"},
               [&] { Trainer(task.model, foreign, nullptr, {.num_steps = 1}); });
  Task half(DType::float16);
  expect_error(ErrorCode::invalid_argument, {"float16"},
               [&] { Trainer(half.model, half.training, nullptr, {.num_steps = 1}); });
}

TEST(Trainer, learns_and_reports_every_step) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    Task task(dtype);
    std::vector<StepRecord> records;
    Trainer trainer(task.model, task.training, &task.evaluation,
                    {.num_steps = 60, .optimizer = {.learning_rate = 1e-2f}, .eval_every = 20},
                    {.on_step = [&](const StepRecord& record) { records.push_back(record); }});
    const TrainingResult result = trainer.run();
    EXPECT_EQ(result.end, TrainingResult::End::finished);
    EXPECT_EQ(result.step, 60);
    ASSERT_EQ(records.size(), 61u);
    EXPECT_FALSE(records[0].loss.has_value());
    for (std::size_t step = 0; step <= 60; ++step) {
      EXPECT_EQ(records[step].step, static_cast<std::int64_t>(step));
      EXPECT_EQ(records[step].eval_loss.has_value(), step % 20 == 0) << step;
    }
    EXPECT_EQ(records.back().num_tokens, result.num_tokens);
    EXPECT_GT(result.peak_bytes, 0u);
    EXPECT_GT(result.tokens_per_second, 0.0);
    EXPECT_GT(*records[0].eval_loss, 3.0);
    EXPECT_LT(*result.eval_loss, 1.5) << dtype_name(dtype);
    EXPECT_LT(*result.loss, 1.5) << dtype_name(dtype);
  }
}

// The same sequences in one batch or in several give the mean over all tokens, though the batches
// have different numbers of them.
TEST(Trainer, accumulation_equals_a_larger_batch) {
  const std::int64_t seq_length = 64;  // rows are filled unequally
  Task whole(DType::float32, seq_length);
  Task parts(DType::float32, seq_length);
  std::set<std::int64_t> sizes;
  for (std::int64_t row = 0; row < whole.training.num_sequences(); ++row)
    sizes.insert(whole.training.num_targets(row));
  ASSERT_GT(sizes.size(), 1u);
  std::vector<StepRecord> records[2];
  const auto run = [&](Task& task, std::int64_t batch_size, std::vector<StepRecord>& into) {
    Trainer trainer(task.model, task.training, nullptr,
                    {.num_steps = 5, .batch_size = batch_size, .accumulate = 12 / batch_size},
                    {.on_step = [&](const StepRecord& record) { into.push_back(record); }});
    (void)trainer.run();
  };
  run(whole, 12, records[0]);
  run(parts, 3, records[1]);
  for (std::size_t step = 0; step < 5; ++step) {
    EXPECT_NEAR(*records[0][step].loss, *records[1][step].loss, 1e-5);
    EXPECT_NEAR(records[0][step].gradient_norm, records[1][step].gradient_norm, 1e-4);
    EXPECT_EQ(records[0][step].num_tokens, records[1][step].num_tokens);
  }
  const NamedTensors others = weights_of(parts.model);
  for (const auto& [name, view] : weights_of(whole.model)) {
    EXPECT_LT(model::relative_error(others.at(name), view), 1e-3) << name;
  }
}

TEST(Trainer, stops_at_a_loss_that_is_not_a_number) {
  Task task;
  const Folder folder;
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  const TrainerOptions options{.output = folder / "run", .num_steps = 10, .save_every = 2};
  const auto poison = [&](const StepRecord& record) {
    if (record.step == 5) {
      weights_of(task.model).at(name).as<float>()[7] = std::numeric_limits<float>::quiet_NaN();
    }
  };
  Trainer trainer(task.model, task.training, nullptr, options, {.on_step = poison});
  const TrainingResult result = trainer.run();
  EXPECT_EQ(result.end, TrainingResult::End::diverged);
  EXPECT_EQ(result.step, 5);
  for (const std::string& piece :
       {std::string("step 6: the loss is nan"), "weights that are not finite: " + name}) {
    EXPECT_NE(result.message.find(piece), std::string::npos) << result.message;
  }
  EXPECT_EQ(train::latest_checkpoint(options.output), folder / "run/checkpoint-4");
  EXPECT_EQ(train::read_log(folder / "run/log.jsonl", 99).size(), 5u);
}

// The loss is finite, a gradient is not: the weights stay as they were.
TEST(Trainer, stops_at_a_gradient_that_is_not_finite) {
  Task task;
  Task untouched;
  const std::string name = "model.norm.weight";
  gradients_of(task.model).at(name).as<float>()[1] = std::numeric_limits<float>::infinity();
  Trainer trainer(task.model, task.training, nullptr, {.num_steps = 3});
  const TrainingResult result = trainer.run();
  EXPECT_EQ(result.end, TrainingResult::End::diverged);
  EXPECT_EQ(result.message,
            "step 1: the gradient's norm is inf, so it was not made; gradients that are not "
            "finite: model.norm.weight");
  expect_equal_weights(task.model, untouched.model);
}

// A run that was stopped and resumed ends with the bits of one that was not, and with its log.
TEST(Resume, gives_the_same_bits) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const Folder folder;
    TrainerOptions options{.output = folder / "whole",
                           .num_steps = 9,
                           .batch_size = 3,
                           .accumulate = 2,
                           .eval_every = 4};
    Task whole(dtype);
    Trainer uninterrupted(whole.model, whole.training, &whole.evaluation, options);
    (void)uninterrupted.run();

    options.output = folder / "parts";
    for (const std::int64_t stop : {0, 2, 3, 7, 9}) {
      Task part(dtype);
      std::int64_t last = 0;
      Trainer trainer(part.model, part.training, &part.evaluation, options,
                      {.on_step = [&](const StepRecord& record) { last = record.step; },
                       .should_stop = [&] { return last == stop; }});
      (void)trainer.resume();
      const TrainingResult result = trainer.run();
      if (stop == 0 || stop == 9) {
        EXPECT_EQ(result.end, TrainingResult::End::finished);
        expect_equal_weights(part.model, whole.model);
        EXPECT_EQ(log_without_times(options.output), log_without_times(folder / "whole"));
        if (stop == 0) fs::remove_all(options.output);
      } else {
        EXPECT_EQ(result.end, TrainingResult::End::stopped);
        EXPECT_EQ(train::latest_checkpoint(options.output),
                  options.output + "/checkpoint-" + std::to_string(stop));
      }
    }
  }
}

TEST(Resume, names_what_has_changed) {
  const Folder folder;
  const TrainerOptions options{.output = folder / "run", .num_steps = 2, .batch_size = 4};
  {
    Task task;
    (void)Trainer(task.model, task.training, nullptr, options).run();
  }
  const auto refuses = [&](Task& task, const TrainerOptions& changed, const std::string& piece) {
    expect_error(ErrorCode::invalid_argument, {"[Trainer.resume]", piece}, [&] {
      Trainer trainer(task.model, task.training, nullptr, changed);
      trainer.resume();
    });
  };
  Task same;
  TrainerOptions changed = options;
  changed.batch_size = 5;
  changed.optimizer.learning_rate = 0.5f;
  changed.min_learning_rate = 1e-4f;
  refuses(same, changed,
          "has other settings: batch_size was 4 and is 5, learning_rate was 0.001 and is 0.5");
  Task longer(DType::float32, 17);
  refuses(longer, options, "seq_length was 16 and is 17");
  Task narrow(DType::bfloat16);
  refuses(narrow, options, "torch_dtype was \"float32\" and is \"bfloat16\"");
  Task other;
  other.training = PackedDataset(repeating_corpus(40, 30, 9), 16);
  refuses(other, options, "data was \"");

  // These may change.
  changed = options;
  changed.save_every = 1;
  changed.keep = 5;
  changed.eval_every = 1;
  Trainer trainer(same.model, same.training, nullptr, changed);
  EXPECT_EQ(trainer.resume(), 2);
}

TEST(Output, belongs_to_one_run) {
  const Folder folder;
  const TrainerOptions options{.output = folder / "run", .num_steps = 1};
  Task task;
  {
    Trainer trainer(task.model, task.training, nullptr, options);
    expect_error(ErrorCode::invalid_argument, {"another process is writing to"},
                 [&] { Trainer(task.model, task.training, nullptr, options); });
    (void)trainer.run();
  }
  Trainer again(task.model, task.training, nullptr, options);
  expect_error(ErrorCode::invalid_argument, {"holds a run already: resume it"},
               [&] { (void)again.run(); });
}

// What a killed process leaves: unfinished folders, a line that is cut off, steps after the last
// checkpoint.
TEST(Output, is_tidied_up_on_resume) {
  const Folder folder;
  const TrainerOptions options{
      .output = folder / "run", .num_steps = 6, .save_every = 2, .keep = 2};
  {
    Task task;
    (void)Trainer(task.model, task.training, nullptr, options).run();
  }
  EXPECT_FALSE(fs::exists(folder / "run/checkpoint-2"));
  EXPECT_TRUE(fs::exists(folder / "run/checkpoint-4"));
  const std::vector<std::string> before = log_without_times(options.output);

  fs::rename(folder / "run/checkpoint-6", folder / "run/.checkpoint-6.tmp");
  fs::create_directories(folder / "run/checkpoint-007");  // not ours
  fs::create_directories(folder / "run/checkpoint-final");
  std::ofstream(folder / "run/log.jsonl", std::ios::app) << "{\"step\":7,\"nu";
  Task task;
  Trainer trainer(task.model, task.training, nullptr, options);
  EXPECT_EQ(trainer.resume(), 4);
  EXPECT_FALSE(fs::exists(folder / "run/.checkpoint-6.tmp"));
  (void)trainer.run();
  EXPECT_EQ(log_without_times(options.output), before);
  EXPECT_TRUE(fs::exists(folder / "run/checkpoint-007"));
}

// A checkpoint is a model directory, with the files that belong to the model.
TEST(Checkpoint, is_a_model_directory) {
  const Folder folder;
  std::ofstream(folder / "tokenizer.json") << "{}";
  Task task;
  (void)Trainer(
      task.model, task.training, nullptr,
      {.output = folder / "run", .num_steps = 1, .companions = {folder / "tokenizer.json"}})
      .run();
  const std::string checkpoint = folder / "run/checkpoint-1";
  const auto loaded = model::load_pretrained(checkpoint);
  expect_equal_weights(task.model, *loaded);
  EXPECT_TRUE(fs::exists(checkpoint + "/tokenizer.json"));
}

TEST(Checkpoint, that_is_damaged_is_named) {
  const Folder folder;
  const TrainerOptions options{.output = folder / "run", .num_steps = 1};
  Task task;
  (void)Trainer(task.model, task.training, nullptr, options).run();
  const std::string tensors = folder / "run/checkpoint-1/training_state.safetensors";
  fs::resize_file(tensors, fs::file_size(tensors) - 1);
  Trainer trainer(task.model, task.training, nullptr, options);
  expect_error(ErrorCode::invalid_argument, {tensors}, [&] { trainer.resume(); });
}

TEST(Checkpoint, with_a_tensor_too_many_is_refused) {
  const Folder folder;
  const TrainerOptions options{.output = folder / "run", .num_steps = 1};
  Task task;
  (void)Trainer(task.model, task.training, nullptr, options).run();
  const std::string path = folder / "run/checkpoint-1/training_state.safetensors";
  std::vector<Tensor> tensors;
  std::vector<io::NamedTensor> named;
  for (const io::SafetensorsFile file(path); const auto& entry : file.entries()) {
    tensors.push_back(file.read(entry.name));
    named.push_back({entry.name, tensors.back()});
  }
  const std::string number = std::to_string(named.size());
  named.push_back({"another", tensors.front()});
  io::write_safetensors(path, named);
  Trainer trainer(task.model, task.training, nullptr, options);
  expect_error([&] { trainer.resume(); },
               {"[Trainer.resume] '" + path + "' must hold the " + number +
                " tensors of the optimiser; got " + std::to_string(named.size())});
}

TEST(Curve, has_round_ticks) {
  const auto expect = [](double low, double high, double first, double step, int count,
                         int decimals) {
    const train::Ticks ticks = train::round_ticks(low, high, 6);
    EXPECT_NEAR(ticks.first, first, 1e-9) << low << " to " << high;
    EXPECT_NEAR(ticks.step, step, 1e-12) << low << " to " << high;
    EXPECT_EQ(ticks.count, count) << low << " to " << high;
    EXPECT_EQ(ticks.decimals, decimals) << low << " to " << high;
  };
  expect(0.0, 600.0, 0.0, 100.0, 7, 0);
  expect(1.23, 5.6, 1.0, 1.0, 6, 0);
  expect(1.23, 2.6, 1.0, 0.5, 5, 1);
  expect(0.031, 0.049, 0.03, 0.005, 5, 3);
  expect(2.0, 2.0, 2.0, 0.0005, 5, 4);
}

TEST(Curve, draws_what_there_is) {
  std::vector<StepRecord> records{{.step = 0, .eval_loss = 5.0}};
  EXPECT_NE(train::draw_loss_curve({}).find("</svg>"), std::string::npos);
  EXPECT_NE(train::draw_loss_curve(records).find("held out"), std::string::npos);
  for (std::int64_t step = 1; step <= 5000; ++step)
    records.push_back({.step = step, .loss = 5.0 - 1e-4 * double(step), .num_tokens = step});
  const std::string svg = train::draw_loss_curve(records);
  EXPECT_LT(svg.size(), 40'000u);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_NE(svg.find("5,000 steps"), std::string::npos);
}

}  // namespace
}  // namespace flashmha
