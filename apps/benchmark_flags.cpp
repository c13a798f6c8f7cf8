// Flags of the benchmark and the model that they describe.
#include <map>

#include "benchmark.h"

namespace flashmha::app {

void add_dtype_flag(CLI::App& command, DType& dtype) {
  const std::map<std::string, DType> names = {
      {"float32", DType::float32}, {"bfloat16", DType::bfloat16}, {"float16", DType::float16}};
  command.add_option("--dtype", dtype, "Element type of parameters and activations")
      ->transform(one_of(names))
      ->type_name("NAME")
      ->default_str(dtype_name(dtype));
}

Rounds rounds_of(const BenchmarkFlags& flags) {
  return {.repetitions = flags.repetitions, .device = parse_device(flags.device)};
}

void add_benchmark_flags(CLI::App& command, BenchmarkFlags& flags) {
  const model::ModelConfig config = model::default_config();
  flags.layers = config.num_layers;
  flags.heads = config.attention.num_heads;
  flags.head_dim = config.attention.head_dim;
  flags.hidden = config.attention.hidden_size;
  flags.intermediate = config.intermediate_size;
  flags.vocab = config.vocab_size;

  const auto add_size = [&](const std::string& name, std::int64_t& size, const std::string& what) {
    command.add_option(name, size, what)
        ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 31))
        ->type_name("N")
        ->capture_default_str();
  };
  add_size("--batch-size", flags.batch_size, "Sequences in a batch");
  add_size("--seq-length", flags.seq_length, "Tokens in a sequence, and in a prompt");
  add_dtype_flag(command, flags.dtype);
  command.add_option("--device", flags.device, "Where to run: cpu, or cuda:N if built with it")
      ->type_name("NAME")
      ->capture_default_str();
  command.add_option("--causal", flags.causal, "A token sees only itself and those before it")
      ->type_name("BOOL")
      ->capture_default_str();
  add_size("--layers", flags.layers, "Decoder layers");
  add_size("--heads", flags.heads, "Query heads");
  command.add_option("--kv-heads", flags.kv_heads, "Key and value heads; 0: as many as --heads")
      ->check(CLI::Range(0, 1 << 20))
      ->type_name("N")
      ->capture_default_str();
  add_size("--head-dim", flags.head_dim, "Size of a head");
  add_size("--hidden", flags.hidden, "Size of the hidden state");
  add_size("--intermediate", flags.intermediate, "Size of the MLP's inner state");
  add_size("--vocab", flags.vocab, "Tokens in the vocabulary");
  add_size("--new-tokens", flags.new_tokens, "Tokens to generate");
  command.add_option("--level", flags.level, "function, layer, model or all")
      ->check(CLI::IsMember({"function", "layer", "model", "all"}))
      ->type_name("NAME")
      ->capture_default_str();
  command.add_option("--repetitions", flags.repetitions, "Runs of each measurement, at least")
      ->check(CLI::Range(1, 1000))
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "Of weights and inputs")
      ->type_name("N")
      ->capture_default_str();
}

model::ModelConfig model_config(const BenchmarkFlags& flags, model::AttentionKind kind) {
  model::ModelConfig config = model::default_config();
  config.vocab_size = flags.vocab;
  config.intermediate_size = flags.intermediate;
  config.num_layers = flags.layers;
  config.dtype = flags.dtype;
  config.device = parse_device(flags.device);
  config.attention_kind = kind;
  config.attention.hidden_size = flags.hidden;
  config.attention.num_heads = flags.heads;
  config.attention.num_kv_heads = flags.kv_heads;
  config.attention.head_dim = flags.head_dim;
  config.attention.causal = flags.causal;
  return config;
}

}  // namespace flashmha::app
