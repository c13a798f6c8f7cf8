// flashmha train: a model learns from text.
#include "train.h"

#include <fmt/format.h>

#include <cmath>
#include <csignal>
#include <filesystem>

#include "flashmha/checkpoint.h"
#include "flashmha/tokenizer.h"
#include "progress.h"

namespace flashmha::app {
namespace {

namespace fs = std::filesystem;
using train::TrainingResult;

// Set by the first SIGINT or SIGTERM: the step that runs is finished and saved. The second one ends
// the program.
volatile std::sig_atomic_t stop_requested = 0;

void stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) { stop_requested = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

text::Tokenizer tokenizer_of(const TrainFlags& flags) {
  const std::string& folder = flags.tokenizer.empty() ? flags.model : flags.tokenizer;
  return folder.empty() ? text::Tokenizer::bytes() : text::Tokenizer::for_model(folder);
}

// Files that belong to a model besides its weights and config.
std::vector<std::string> companions_of(const TrainFlags& flags) {
  std::vector<std::string> files;
  const fs::path folder = flags.tokenizer.empty() ? flags.model : flags.tokenizer;
  if (folder.empty()) return files;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}) {
    if (fs::is_regular_file(folder / name)) files.push_back((folder / name).string());
  }
  return files;
}

struct Data {
  train::PackedDataset training;
  std::optional<train::PackedDataset> evaluation;
};

Data load_data(const TrainFlags& flags, const text::Tokenizer& tokenizer) {
  train::CorpusReport report;
  std::optional<Progress> progress;
  train::CorpusOptions options{.document_separator = flags.document_separator};
  options.on_file = [&](const std::string& path, std::int64_t num_files) {
    if (!progress) progress.emplace("reading", num_files);
    progress->step(path);
  };
  train::CorpusSplit split =
      split_corpus(read_corpus(flags.data, tokenizer, options, &report), flags.eval_fraction);
  progress.reset();
  const std::int64_t num_documents =
      split.training.num_documents() + split.evaluation.num_documents();
  fmt::print("data      {} files, {} documents, {} tokens; {} of them in {} documents held out\n",
             report.num_files, num_documents,
             split.training.num_tokens() + split.evaluation.num_tokens(),
             split.evaluation.num_tokens(), split.evaluation.num_documents());
  if (report.num_binary_files + report.num_empty_files > 0) {
    fmt::print(stderr, "flashmha: left out {} binary and {} empty files\n", report.num_binary_files,
               report.num_empty_files);
  }
  Data data{.training = train::PackedDataset(std::move(split.training), flags.seq_length)};
  if (split.evaluation.num_tokens() > split.evaluation.num_documents()) {
    data.evaluation.emplace(std::move(split.evaluation), flags.seq_length);
  }
  const std::int64_t positions = data.training.num_sequences() * flags.seq_length;
  fmt::print(
      "          {} sequences of {}, {:.1f} % full\n", data.training.num_sequences(),
      flags.seq_length,
      100.0 * static_cast<double>(data.training.num_targets()) / static_cast<double>(positions));
  return data;
}

std::unique_ptr<model::CausalLM> make_model(const TrainFlags& flags,
                                            const text::Tokenizer& tokenizer) {
  std::unique_ptr<model::CausalLM> model;
  if (flags.model.empty()) {
    model::ModelConfig config = train_model_config(flags, tokenizer.vocab_size());
    config.bos_token_id = tokenizer.bos_token_id();
    if (const auto end = tokenizer.eos_token_id()) config.eos_token_ids = {*end};
    model = std::make_unique<model::CausalLM>(config);
    model->init_weights(flags.options.seed);
  } else {
    model = model::load_pretrained(flags.model, {.dtype = flags.dtype, .device = flags.device});
  }
  const model::ModelConfig& config = model->config();
  fmt::print(
      "model     {:.1f} million parameters, {}; {} layers, hidden {}, {} heads ({} kv), "
      "vocabulary {}\n",
      static_cast<double>(model->num_parameters()) / 1e6, dtype_name(config.dtype),
      config.num_layers, config.attention.hidden_size, config.attention.num_heads,
      config.attention.num_kv_heads, config.vocab_size);
  return model;
}

train::TrainerOptions trainer_options(const TrainFlags& flags, const Data& data) {
  train::TrainerOptions options = flags.options;
  const auto rows_per_step = static_cast<double>(options.batch_size * options.accumulate);
  const auto rows = static_cast<double>(data.training.num_sequences());
  if (options.num_steps == 0) {
    options.num_steps =
        std::max<std::int64_t>(1, std::llround(std::ceil(flags.epochs * rows / rows_per_step)));
  }
  const std::int64_t tenth = std::max<std::int64_t>(1, options.num_steps / 10);
  options.eval_every = flags.eval_every.value_or(tenth);
  options.save_every = flags.save_every.value_or(tenth);
  options.optimizer.learning_rate =
      flags.learning_rate.value_or(flags.model.empty() ? 1e-3f : 5e-5f);
  options.companions = companions_of(flags);
  fmt::print("run       {} steps of {} x {} sequences: {:.2f} epochs, in '{}'\n", options.num_steps,
             options.accumulate, options.batch_size,
             static_cast<double>(options.num_steps) * rows_per_step / rows, options.output);
  return options;
}

Json report_of(const TrainingResult& result) {
  constexpr const char* kEnds[] = {"finished", "stopped", "diverged"};
  Json report = {{"end", kEnds[static_cast<int>(result.end)]},
                 {"step", result.step},
                 {"num_tokens", result.num_tokens},
                 {"tokens_per_second", result.tokens_per_second},
                 {"peak_bytes", result.peak_bytes}};
  if (result.loss) report["loss"] = *result.loss;
  if (result.eval_loss) report["eval_loss"] = *result.eval_loss;
  return report;
}

ExitCode conclude(const TrainFlags& flags, const TrainingResult& result) {
  write_json(flags.common, report_of(result));
  const std::string& output = flags.options.output;
  fmt::print("trained   {} steps, {} tokens, {:.0f} tokens/s, {:.0f} MiB of tensors at most\n",
             result.step, result.num_tokens, result.tokens_per_second,
             static_cast<double>(result.peak_bytes) / double(1 << 20));
  if (result.loss) fmt::print("loss      {:.4f}", *result.loss);
  if (result.loss && result.eval_loss) fmt::print(", held out {:.4f}", *result.eval_loss);
  if (result.loss) fmt::print("\n");
  const std::optional<std::string> checkpoint = train::latest_checkpoint(output);
  fmt::print("written   {}, {}/log.jsonl, {}/loss.svg\n", checkpoint.value_or("no checkpoint"),
             output, output);
  std::fflush(stdout);
  switch (result.end) {
    case TrainingResult::End::finished: return ExitCode::ok;
    case TrainingResult::End::stopped:
      fmt::print(stderr, "flashmha: stopped at step {}; --resume goes on\n", result.step);
      return ExitCode::failed;
    case TrainingResult::End::diverged: break;
  }
  fmt::print(stderr, "flashmha: {}\n", result.message);
  return ExitCode::failed;
}

ExitCode run(const TrainFlags& flags) {
  const text::Tokenizer tokenizer = tokenizer_of(flags);
  const Data data = load_data(flags, tokenizer);
  const std::unique_ptr<model::CausalLM> model = make_model(flags, tokenizer);
  const train::TrainerOptions options = trainer_options(flags, data);
  std::optional<TrainingProgress> progress;
  train::Trainer trainer(
      *model, data.training, data.evaluation ? &*data.evaluation : nullptr, options,
      {.on_step = [&](const train::StepRecord& record) { progress->show(record); },
       .should_stop = [] { return stop_requested != 0; }});
  const std::int64_t first_step = flags.resume ? trainer.resume() : 0;
  if (first_step > 0) fmt::print("resumed   after step {}\n", first_step);
  std::fflush(stdout);
  stop_on_signals();
  progress.emplace(first_step, options.num_steps);
  const TrainingResult result = trainer.run();
  progress.reset();
  return conclude(flags, result);
}

}  // namespace

void add_train(CLI::App& program, ExitCode& exit_code) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* command = add_command(program, flags->common, "train",
                                  "Train a model on text, from zero or from a model directory.",
                                  "flashmha train --data books/ --steps 1000 --output run");
  add_train_flags(*command, *flags);
  command->callback([flags, &exit_code] {
    prepare(flags->common);
    exit_code = run(*flags);
  });
}

}  // namespace flashmha::app
