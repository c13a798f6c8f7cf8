#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>

#include "core/check.h"
#include "generate.h"

namespace flashmha::app {
namespace {

using model::CacheKind;
using model::EarlyStopping;

const std::map<std::string, std::optional<CacheKind>> kCaches = {
    {"dynamic", CacheKind::dynamic_cache},
    {"static", CacheKind::static_cache},
    {"sliding", CacheKind::sliding_cache},
    {"paged", CacheKind::paged_cache},
    {"none", std::nullopt}};

const std::map<std::string, EarlyStopping> kEarlyStopping = {
    {"heuristic", EarlyStopping::heuristic},
    {"when-found", EarlyStopping::when_found},
    {"never", EarlyStopping::never}};

const std::map<std::string, model::AttentionKind> kAttention = {
    {"plain", model::AttentionKind::plain}, {"flash", model::AttentionKind::flash}};

const std::map<std::string, DType> kDtypes = {
    {"float32", DType::float32}, {"bfloat16", DType::bfloat16}, {"float16", DType::float16}};

std::string without_last_line_feed(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

std::string read_all(std::istream& stream, const std::string& name) {
  std::string text(std::istreambuf_iterator<char>(stream), {});
  if (!stream.good() && !stream.eof()) fail(ErrorCode::io, "[generate] cannot read {}", name);
  return text;
}

void add_text_flags(CLI::App& command, GenerateFlags& flags) {
  command
      .add_option("--model", flags.model,
                  "Directory of the model, as Hugging Face's, or of a run of flashmha train")
      ->required()
      ->type_name("DIR");
  CLI::Option* prompt =
      command.add_option("--prompt", flags.prompts, "Text to continue; repeated: a batch")
          ->type_name("TEXT")
          ->expected(1)
          ->take_all()
          ->allow_extra_args(false);
  command.add_option("--prompt-file", flags.prompt_file, "File with the text; else standard input")
      ->type_name("FILE")
      ->excludes(prompt);
  command.add_option("--max-new-tokens", flags.generation.max_new_tokens, "Tokens to add, at most")
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--stop", flags.stop_strings, "End before this text; may be repeated")
      ->type_name("TEXT")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  command.add_flag("--ignore-eos", flags.ignore_eos, "Go on after the model's end token");
  command.add_flag("--echo", flags.echo, "Print the prompt before its text");
  command.add_flag("--no-stream", flags.no_stream, "Print the text at the end, not as it comes");
}

void add_sampling_flags(CLI::App& command, GenerateFlags& flags) {
  model::SamplingOptions& sampling = flags.generation.sampling;
  const auto add = [&](const std::string& name, auto& value, const std::string& what) {
    command.add_option(name, value, what)->type_name("X")->capture_default_str();
  };
  command
      .add_option("--temperature", flags.temperature,
                  "0: the most likely token [0; 1 with --top-k, --top-p or --min-p]")
      ->type_name("X");
  add("--top-k", sampling.top_k, "Draw from this many tokens; 0: all");
  add("--top-p", sampling.top_p, "Draw from the likeliest tokens of this sum");
  add("--min-p", sampling.min_p, "Draw from tokens of this share of the highest probability");
  add("--repetition-penalty", sampling.repetition_penalty, "Divides scores of seen tokens");
  add("--seed", sampling.seed, "Of the draws");
}

void add_beam_flags(CLI::App& command, model::GenerationOptions& generation) {
  const auto add = [&](const std::string& name, auto& value, const std::string& what) {
    command.add_option(name, value, what)->type_name("X")->capture_default_str();
  };
  add("--num-beams", generation.num_beams, "Above 1: beam search");
  add("--num-return-sequences", generation.num_return_sequences, "Results of every prompt");
  add("--length-penalty", generation.length_penalty, "Exponent of the length in a beam's score");
  command
      .add_option("--early-stopping", generation.early_stopping,
                  "When beam search stops: heuristic, when-found or never")
      ->transform(one_of(kEarlyStopping))
      ->type_name("NAME")
      ->default_str("heuristic");
}

}  // namespace

void add_generate_flags(CLI::App& command, GenerateFlags& flags) {
  flags.generation.max_new_tokens = 128;
  add_text_flags(command, flags);
  add_sampling_flags(command, flags);
  add_beam_flags(command, flags.generation);
  command.add_option("--cache", flags.cache, "dynamic, static, sliding, paged or none")
      ->check(CLI::IsMember({"dynamic", "static", "sliding", "paged", "none"}))
      ->type_name("NAME")
      ->capture_default_str();
  command.add_option("--attention", flags.load.attention_kind, "plain or flash")
      ->transform(one_of(kAttention))
      ->type_name("NAME")
      ->default_str("flash");
  add_device_flag(command, flags.load.device);
  command
      .add_option("--dtype", flags.load.dtype,
                  "Of weights and activations [the model's own; on a GPU 16 bits]")
      ->transform(one_of(kDtypes))
      ->type_name("NAME");
}

std::vector<std::string> read_prompts(const GenerateFlags& flags) {
  if (!flags.prompts.empty()) return flags.prompts;
  if (flags.prompt_file.empty()) {
    return {without_last_line_feed(read_all(std::cin, "standard input"))};
  }
  std::ifstream file(flags.prompt_file, std::ios::binary);
  if (!file) fail(ErrorCode::io, "[generate] cannot open --prompt-file '{}'", flags.prompt_file);
  return {without_last_line_feed(read_all(file, flags.prompt_file))};
}

model::TextGenerationOptions generation_options(const GenerateFlags& flags) {
  model::TextGenerationOptions options{.generation = flags.generation,
                                       .stop_strings = flags.stop_strings};
  model::SamplingOptions& sampling = options.generation.sampling;
  const bool filtered = sampling.top_k > 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0;
  sampling.temperature = flags.temperature.value_or(filtered ? 1.0 : 0.0);
  check(!filtered || sampling.temperature != 0.0,
        "[generate] --top-k, --top-p and --min-p need a --temperature above 0; got {}",
        sampling.temperature);
  options.generation.cache = kCaches.at(flags.cache);
  model::check_text_generation(options);
  return options;
}

}  // namespace flashmha::app
