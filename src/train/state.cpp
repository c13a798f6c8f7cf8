#include "train/state.h"

#include <filesystem>
#include <vector>

#include "core/check.h"
#include "flashmha/checkpoint.h"
#include "flashmha/safetensors.h"
#include "io/file.h"

namespace flashmha::train {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kFormat = 1;

std::string json_path(const std::string& folder) {
  return (fs::path(folder) / "training_state.json").string();
}

std::string tensors_path(const std::string& folder) {
  return (fs::path(folder) / "training_state.safetensors").string();
}

// The shortest number that rounds to this one: 0.1, not 0.10000000149.
double as_written(float value) {
  return std::stod(fmt::format("{}", value));
}

// "batch_size was 8 and is 4, seed was 1 and is 2"; empty if the objects are equal.
std::string differences(const io::Json& before, const io::Json& now) {
  std::string text;
  const auto show = [](const io::Json& object, const std::string& key) {
    return object.contains(key) ? object.at(key).dump() : std::string("not given");
  };
  const auto compare = [&](const std::string& key) {
    const std::string was = show(before, key);
    const std::string is = show(now, key);
    if (was == is) return;
    text += fmt::format("{}{} was {} and is {}", text.empty() ? "" : ", ", key, was, is);
  };
  for (const auto& [key, value] : now.items())
    compare(key);
  for (const auto& [key, value] : before.items()) {
    if (!now.contains(key)) compare(key);
  }
  return text;
}

}  // namespace

io::Json settings_of(const TrainerOptions& options, const PackedDataset& training) {
  const model::OptimizerOptions& optimizer = options.optimizer;
  return {{"steps", options.num_steps},
          {"batch_size", options.batch_size},
          {"accumulate", options.accumulate},
          {"seq_length", training.seq_length()},
          {"data", fmt::format("{} tokens, {:016x}", training.corpus().num_tokens(),
                               training.fingerprint())},
          {"learning_rate", as_written(optimizer.learning_rate)},
          {"min_learning_rate", as_written(*options.min_learning_rate)},
          {"warmup_steps", *options.warmup_steps},
          {"beta1", as_written(optimizer.beta1)},
          {"beta2", as_written(optimizer.beta2)},
          {"eps", as_written(optimizer.eps)},
          {"weight_decay", as_written(optimizer.weight_decay)},
          {"clip", as_written(optimizer.max_gradient_norm)},
          {"seed", options.seed}};
}

void save_state(const std::string& folder, const Progress& progress, const io::Json& settings,
                const model::AdamW& optimizer) {
  std::vector<io::NamedTensor> tensors;
  optimizer.visit_state([&](const std::string& name, const TensorView& tensor) {
    tensors.push_back({.name = name, .tensor = tensor});
  });
  io::write_safetensors(tensors_path(folder), tensors);
  const io::Json state = {{"format", kFormat},
                          {"step", progress.step},
                          {"num_tokens", progress.num_tokens},
                          {"settings", settings}};
  io::write_text_file(json_path(folder), state.dump(2) + "\n");
}

Progress load_state(const std::string& folder, const io::Json& settings, model::AdamW& optimizer) {
  const io::Json json = io::read_json_file(json_path(folder), "[Trainer.resume]");
  const io::JsonObject state(json, "[Trainer.resume] '" + json_path(folder) + "'");
  if (state.integer("format") != kFormat) state.refuse("format", "must be 1");
  const std::string changes = differences(state.object("settings").value(), settings);
  check(changes.empty(), "[Trainer.resume] the run in '{}' has other settings: {}", folder,
        changes);
  const Progress progress{.step = state.integer("step"), .num_tokens = state.integer("num_tokens")};
  const io::SafetensorsFile file(tensors_path(folder));
  std::size_t num_read = 0;
  optimizer.visit_state([&](const std::string& name, const TensorView& tensor) {
    file.read_into(name, tensor);
    ++num_read;
  });
  check(num_read == file.entries().size(),
        "[Trainer.resume] '{}' must hold the {} tensors of the optimiser; got {}",
        tensors_path(folder), num_read, file.entries().size());
  optimizer.resume(progress.step);
  return progress;
}

void check_same_model(const std::string& folder, const model::ModelConfig& config,
                      const std::string& scratch) {
  fs::create_directories(scratch);
  model::write_config(config, scratch);
  const auto read = [](const std::string& from) {
    return io::read_json_file((fs::path(from) / "config.json").string(), "[Trainer.resume]");
  };
  const std::string changes = differences(read(folder), read(scratch));
  fs::remove_all(scratch);
  check(changes.empty(), "[Trainer.resume] the run in '{}' has another model: {}", folder, changes);
}

}  // namespace flashmha::train
