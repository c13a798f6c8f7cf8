// Flags of `flashmha train` and the model that they describe.
#include <limits>
#include <map>

#include "train.h"

namespace flashmha::app {
namespace {

constexpr std::int64_t kLargest = std::int64_t{1} << 31;

template <class Count>
CLI::Option* add_count(CLI::App& command, const std::string& name, Count& count,
                       std::int64_t smallest, const std::string& what) {
  return command.add_option(name, count, what)
      ->check(CLI::Range(smallest, kLargest))
      ->type_name("N");
}

template <class Number>
CLI::Option* add_number(CLI::App& command, const std::string& name, Number& number, double highest,
                        const std::string& what) {
  return command.add_option(name, number, what)->check(CLI::Range(0.0, highest))->type_name("X");
}

void add_data_flags(CLI::App& command, TrainFlags& flags) {
  command
      .add_option("--data", flags.data,
                  "Text files and folders of them; a file is a document, as is the \"text\" of "
                  "every line of a .jsonl file")
      ->required()
      ->type_name("PATH");
  command
      .add_option("--document-separator", flags.document_separator,
                  "Text between the documents of a file")
      ->type_name("TEXT");
  add_number(command, "--eval-fraction", flags.eval_fraction, 0.5,
             "Share of the tokens that is held out, by documents")
      ->capture_default_str();
  add_count(command, "--seq-length", flags.seq_length, 1, "Tokens in a sequence")
      ->capture_default_str();
}

void add_model_flags(CLI::App& command, TrainFlags& flags) {
  CLI::Option* model =
      command
          .add_option("--model", flags.model,
                      "Go on from this model directory, with a fresh optimiser; otherwise a model "
                      "of random weights is made")
          ->type_name("DIR");
  command
      .add_option("--tokenizer", flags.tokenizer,
                  "Directory with tokenizer.json; default: the model's, otherwise bytes")
      ->type_name("DIR");
  const std::map<std::string, DType> names = {{"float32", DType::float32},
                                              {"bfloat16", DType::bfloat16}};
  command
      .add_option("--dtype", flags.dtype,
                  "Of parameters and activations: float32, or bfloat16, whose optimiser keeps "
                  "float32 weights; default: float32, with --model the model's, on a GPU bfloat16")
      ->transform(one_of(names))
      ->type_name("NAME");
  add_device_flag(command, flags.device);
  const auto add_shape = [&](const std::string& name, std::int64_t& size, const std::string& what) {
    add_count(command, name, size, size > 0 ? 1 : 0, what)->capture_default_str()->excludes(model);
  };
  add_shape("--layers", flags.layers, "Decoder layers");
  add_shape("--hidden", flags.hidden, "Size of the hidden state");
  add_shape("--heads", flags.heads, "Query heads");
  add_shape("--kv-heads", flags.kv_heads, "Key and value heads; 0: as many as --heads");
  add_shape("--head-dim", flags.head_dim, "Size of a head; 0: hidden / heads");
  add_shape("--intermediate", flags.intermediate, "Size of the MLP's inner state; 0: 8/3 hidden");
}

void add_optimizer_flags(CLI::App& command, TrainFlags& flags) {
  model::OptimizerOptions& optimizer = flags.options.optimizer;
  const double any = std::numeric_limits<float>::max();
  add_number(command, "--learning-rate", flags.learning_rate, any,
             "The highest; default: 0.001, with --model 0.00005");
  add_number(command, "--min-learning-rate", flags.options.min_learning_rate, any,
             "Of the last step; default: a tenth of --learning-rate");
  add_count(command, "--warmup-steps", flags.options.warmup_steps, 0,
            "Steps until the highest; default: a tenth of all, at most 100");
  add_number(command, "--weight-decay", optimizer.weight_decay, any, "Of matrices, not of vectors")
      ->capture_default_str();
  add_number(command, "--beta1", optimizer.beta1, 1.0, "AdamW's")->capture_default_str();
  add_number(command, "--beta2", optimizer.beta2, 1.0, "AdamW's")->capture_default_str();
  add_number(command, "--clip", optimizer.max_gradient_norm, any,
             "Largest norm of the gradient; 0: any")
      ->capture_default_str();
}

void add_run_flags(CLI::App& command, TrainFlags& flags) {
  train::TrainerOptions& options = flags.options;
  CLI::Option* steps =
      add_count(command, "--steps", options.num_steps, 1, "Steps of the optimiser");
  add_number(command, "--epochs", flags.epochs, 1e6, "Times through the data, in place of --steps")
      ->capture_default_str()
      ->excludes(steps);
  add_count(command, "--batch-size", options.batch_size, 1, "Sequences in a batch")
      ->capture_default_str();
  add_count(command, "--accumulate", options.accumulate, 1, "Batches in a step")
      ->capture_default_str();
  command.add_flag("--recompute", options.recompute,
                   "Layers keep their inputs only and compute the rest again: less memory");
  command.add_option("--seed", options.seed, "Of weights, of the data's order, of dropout")
      ->type_name("N")
      ->capture_default_str();
  add_count(command, "--eval-every", flags.eval_every, 0,
            "Steps between evaluations; 0: before and after; default: a tenth of all");
  add_count(command, "--eval-sequences", options.max_eval_sequences, 1,
            "Held-out sequences of an evaluation, at most")
      ->capture_default_str();
  add_count(command, "--save-every", flags.save_every, 0,
            "Steps between checkpoints; 0: at the end; default: a tenth of all");
  add_count(command, "--keep", options.keep, 0, "Checkpoints that are kept; 0: all")
      ->capture_default_str();
  command.add_option("--output", options.output, "Directory of log, curve and checkpoints")
      ->type_name("DIR")
      ->capture_default_str();
  command.add_flag("--resume", flags.resume,
                   "Go on from the newest checkpoint in --output, if there is one");
}

}  // namespace

void add_train_flags(CLI::App& command, TrainFlags& flags) {
  add_data_flags(command, flags);
  add_model_flags(command, flags);
  add_run_flags(command, flags);
  add_optimizer_flags(command, flags);
}

model::ModelConfig train_model_config(const TrainFlags& flags, std::int64_t vocab_size) {
  model::ModelConfig config = model::default_config();
  config.vocab_size = vocab_size;
  config.intermediate_size =
      flags.intermediate > 0 ? flags.intermediate : (flags.hidden * 8 / 3 + 31) / 32 * 32;
  config.num_layers = flags.layers;
  const bool on_gpu = flags.device.type == DeviceType::cuda;
  config.dtype = flags.dtype.value_or(on_gpu ? DType::bfloat16 : DType::float32);
  config.device = flags.device;
  config.attention.hidden_size = flags.hidden;
  config.attention.num_heads = flags.heads;
  config.attention.num_kv_heads = flags.kv_heads;
  config.attention.head_dim = flags.head_dim;
  config.attention.rotary->max_position_embeddings = flags.seq_length;
  return config;
}

}  // namespace flashmha::app
