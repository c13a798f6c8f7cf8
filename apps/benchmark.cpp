// flashmha benchmark: plain against flash attention, in three levels.
#include "benchmark.h"

#include <fmt/format.h>

#include <array>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "table.h"

namespace flashmha::app {
namespace {

// What a row of the table says: the seed's words for the model's five.
const std::map<std::string, std::string> kLabels = {
    {"function.forward", "function: forward"},
    {"function.backward", "function: backward"},
    {"function.training", "function: forward + backward"},
    {"function.training_memory", "function: extra memory"},
    {"layer.forward", "layer: forward"},
    {"layer.backward", "layer: backward"},
    {"layer.training", "layer: forward + backward"},
    {"layer.training_memory", "layer: extra memory"},
    {"model.training", "model: training speed"},
    {"model.training_memory", "model: training memory"},
    {"model.inference", "model: inference speed"},
    {"model.inference_memory", "model: inference memory"},
    {"model.generation", "model: generation latency"},
};

std::string amount(const Comparison& row, const Spread& spread) {
  if (row.unit == "bytes") return fmt::format("{:.1f} MiB", spread.median / (1 << 20));
  return fmt::format("{:.2f} ms ({:.2f}..{:.2f})", spread.median, spread.min, spread.max);
}

void print_results(const BenchmarkFlags& flags, const Comparisons& results) {
  fmt::print(
      "batch {}, sequence {}, {}, {}, {} threads; {} layers, hidden {}, {} heads of {} "
      "({} kv), vocabulary {}\n\n",
      flags.batch_size, flags.seq_length, dtype_name(flags.dtype), flags.causal ? "causal" : "full",
      num_threads(), flags.layers, flags.hidden, flags.heads, flags.head_dim, flags.kv_heads,
      flags.vocab);
  Table table({"", "plain", "flash", "plain / flash"});
  for (const Comparison& row : results) {
    table.add_row({kLabels.at(row.level + "." + row.name), amount(row, row.plain),
                   amount(row, row.flash), fmt::format("{:.2f}x", row.ratio.median)});
  }
  table.print();
  fmt::print(
      "\nHow to read it: plain and flash run in turn, {} rounds or more; times are medians with\n"
      "(smallest..largest), and plain / flash is the median of the rounds' ratios: above 1, flash "
      "is\n"
      "better. Training is forward, loss, backward and AdamW; generation is the prompt and {} "
      "greedy\n"
      "tokens through a static cache. Function and layer memory is what forward and backward need\n"
      "beyond their inputs; model memory is the peak of weights, gradients, optimiser state and\n"
      "activations.\n",
      flags.repetitions, flags.new_tokens);
}

Json report_json(const BenchmarkFlags& flags, const Comparisons& results) {
  Json report = {{"batch_size", flags.batch_size},
                 {"seq_length", flags.seq_length},
                 {"dtype", dtype_name(flags.dtype)},
                 {"device", flags.device},
                 {"causal", flags.causal},
                 {"layers", flags.layers},
                 {"heads", flags.heads},
                 {"kv_heads", flags.kv_heads},
                 {"head_dim", flags.head_dim},
                 {"hidden", flags.hidden},
                 {"intermediate", flags.intermediate},
                 {"vocab", flags.vocab},
                 {"new_tokens", flags.new_tokens},
                 {"level", flags.level},
                 {"repetitions", flags.repetitions},
                 {"seed", flags.seed},
                 {"threads", num_threads()}};
  for (const Comparison& row : results) {
    Json& level = report[row.level];
    const auto add = [&](const std::string& who, const Spread& spread) {
      const std::string key = fmt::format("{}_{}_{}", row.name, who, row.unit);
      level[key] = spread.median;
      if (row.unit == "bytes") return;
      level[fmt::format("{}_{}_min_{}", row.name, who, row.unit)] = spread.min;
      level[fmt::format("{}_{}_max_{}", row.name, who, row.unit)] = spread.max;
    };
    add("plain", row.plain);
    add("flash", row.flash);
    level[row.name + "_plain_over_flash_ratio"] = row.ratio.median;
  }
  return report;
}

struct Level {
  const char* name;
  int num_steps;
  Comparisons (*run)(const BenchmarkFlags& flags, Progress& progress);
};

constexpr std::array kLevels = {Level{"function", kFunctionSteps, benchmark_function},
                                Level{"layer", kLayerSteps, benchmark_layer},
                                Level{"model", kModelSteps, benchmark_model}};

void run(const BenchmarkFlags& flags) {
  std::vector<Level> levels;
  int num_steps = 0;
  for (const Level& level : kLevels) {
    if (flags.level != "all" && flags.level != level.name) continue;
    levels.push_back(level);
    num_steps += level.num_steps;
  }
  Comparisons results;
  {
    Progress progress("benchmark", num_steps);
    for (const Level& level : levels) {
      for (Comparison& row : level.run(flags, progress))
        results.push_back(std::move(row));
    }
  }
  print_results(flags, results);
  write_json(flags.common, report_json(flags, results));
}

}  // namespace

void add_benchmark(CLI::App& program, ExitCode& exit_code) {
  auto flags = std::make_shared<BenchmarkFlags>();
  CLI::App* command = add_command(
      program, flags->common, "benchmark",
      "Measure plain against flash attention: the function, the layer, the whole model.",
      "flashmha benchmark --batch-size 2 --seq-length 256");
  add_benchmark_flags(*command, *flags);
  add_benchmark_attention(*command, exit_code);
  command->callback([command, flags, &exit_code] {
    if (!command->get_subcommands().empty()) return;  // `benchmark attention` has run
    prepare(flags->common);
    if (flags->kv_heads == 0) flags->kv_heads = flags->heads;
    run(*flags);
    exit_code = ExitCode::ok;
  });
}

}  // namespace flashmha::app
