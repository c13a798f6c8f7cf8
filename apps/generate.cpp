// flashmha generate: continue texts with a model from a directory.
#include "generate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>

#include "core/check.h"
#include "flashmha/trainer.h"
#include "generation_speed.h"
#include "progress.h"

namespace flashmha::app {
namespace {

using model::GeneratedText;

void write_text(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

// The directory itself, or the newest checkpoint in the output of `flashmha train`.
std::string find_model(const std::string& directory) {
  if (!std::filesystem::is_directory(directory)) {
    fail(ErrorCode::io, "[generate] --model must be a directory; got '{}'", directory);
  }
  if (std::filesystem::exists(directory + "/config.json")) return directory;
  return train::latest_checkpoint(directory).value_or(directory);
}

std::unique_ptr<model::CausalLM> load_model(const GenerateFlags& flags) {
  Progress progress("generate", 1);
  progress.step("loading " + flags.model);
  return model::load_pretrained(flags.model, flags.load);
}

// The model's own, else the tokenizer's.
std::vector<std::int64_t> stop_tokens(const GenerateFlags& flags, const model::ModelConfig& config,
                                      const text::Tokenizer& tokenizer) {
  if (flags.ignore_eos) return {};
  std::vector<std::int64_t> ids = model::read_stop_token_ids(flags.model, config);
  const std::optional<std::int64_t> eos = tokenizer.eos_token_id();
  if (ids.empty() && eos && *eos < config.vocab_size) ids.push_back(*eos);
  return ids;
}

// Results one after another, each under a line that says whose it is, unless there is only one.
void print_results(const GenerateFlags& flags, const std::vector<std::string>& prompts,
                   const std::vector<GeneratedText>& results) {
  const std::int64_t each = flags.generation.num_return_sequences;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const GeneratedText& result = results[i];
    if (results.size() > 1) {
      const std::string which =
          each > 1 ? fmt::format(", sequence {}", static_cast<std::int64_t>(i) % each + 1) : "";
      fmt::print("{}== prompt {}{} ==\n", i > 0 ? "\n" : "", result.prompt + 1, which);
    }
    if (flags.echo) write_text(prompts[static_cast<std::size_t>(result.prompt)]);
    write_text(result.text + "\n");
  }
}

Json report(const GenerateFlags& flags, const std::vector<std::string>& prompts,
            const std::vector<GeneratedText>& results, const GenerationSpeed& speed) {
  Json list = Json::array();
  for (const GeneratedText& result : results) {
    Json entry = {{"prompt", prompts[static_cast<std::size_t>(result.prompt)]},
                  {"text", result.text},
                  {"tokens", result.tokens},
                  {"finish_reason", finish_reason_name(result.finish_reason)}};
    if (flags.generation.num_beams > 1) entry["score"] = result.score;
    list.push_back(std::move(entry));
  }
  return {{"model", flags.model},
          {"threads", num_threads()},
          {"seed", flags.generation.sampling.seed},
          {"results", std::move(list)},
          {"speed", speed_json(speed)}};
}

std::int64_t count_tokens(const std::vector<GeneratedText>& results) {
  std::int64_t count = 0;
  for (const GeneratedText& result : results)
    count += std::ssize(result.tokens);
  return count;
}

void run(const GenerateFlags& flags) {
  model::TextGenerationOptions options = generation_options(flags);
  const std::vector<std::string> prompts = read_prompts(flags);
  const text::Tokenizer tokenizer = text::Tokenizer::for_model(flags.model);
  const std::unique_ptr<model::CausalLM> model = load_model(flags);
  options.generation.stop_token_ids = stop_tokens(flags, model->config(), tokenizer);

  const bool one = prompts.size() == 1 && flags.generation.num_return_sequences == 1;
  const bool streams = one && !flags.no_stream && flags.generation.num_beams == 1;
  std::optional<Progress> progress;
  if (!streams) progress.emplace("generate", flags.generation.max_new_tokens);
  if (streams) {
    if (flags.echo) write_text(prompts.front());
    options.on_text = [](std::int64_t, std::string_view text) {
      write_text(text);
      return true;
    };
  }
  GenerationClock clock;
  options.generation.on_step = [&](std::int64_t) {
    clock.end_step();
    if (progress) progress->step("tokens");
  };
  const std::vector<GeneratedText> results = generate_text(*model, tokenizer, prompts, options);
  progress.reset();
  streams ? write_text("\n") : print_results(flags, prompts, results);

  const GenerationSpeed speed = measure_speed(clock, count_tokens(results), std::ssize(results),
                                              weight_bytes_of_step(*model), model->config().device);
  print_speed(speed);
  write_json(flags.common, report(flags, prompts, results, speed));
}

}  // namespace

void add_generate(CLI::App& program, ExitCode& exit_code) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = add_command(
      program, flags->common, "generate",
      "Continue texts with a model from a directory: greedy, sampled or by beam search.",
      "flashmha generate --model DIR --prompt \"Once upon a time\" --temperature 0.8 --top-p 0.95");
  add_generate_flags(*command, *flags);
  command->callback([flags, &exit_code] {
    prepare(flags->common);
    flags->model = find_model(flags->model);
    run(*flags);
    exit_code = ExitCode::ok;
  });
}

}  // namespace flashmha::app
