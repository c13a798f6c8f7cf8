// flashmha benchmark attention: the attention kernels alone, over a grid.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <memory>

#include "benchmark.h"
#include "flashmha/error.h"
#include "kernel_grid.h"
#include "table.h"

namespace flashmha::app {
namespace {

const std::map<std::string, std::vector<Pass>> kPasses = {
    {"forward", {Pass::forward}},
    {"backward", {Pass::backward}},
    {"decode", {Pass::decode}},
    {"all", {Pass::forward, Pass::backward, Pass::decode}}};

const std::map<std::string, DType> kDtypes = {
    {"float32", DType::float32}, {"bfloat16", DType::bfloat16}, {"float16", DType::float16}};

std::string speed_cell(const Json& row, const std::string& who) {
  const bool decode = row["pass"] == "decode";
  return fmt::format("{:.1f} {}", row[who + (decode ? "_gbps" : "_gflops")].get<double>(),
                     decode ? "GB/s" : "GFLOP/s");
}

std::string number(const Json& row, const std::string& key, const char* format) {
  return row.contains(key) ? fmt::format(fmt::runtime(format), row[key].get<double>()) : "-";
}

void print_table(const Json& rows, const GridFlags& flags) {
  const int threads = num_threads();
  std::vector<std::string> header = {"pass", "dtype",    "head_dim", "sequence",
                                     "mask", "1 thread", "of peak"};
  if (threads > 1) {
    header.push_back(fmt::format("{} threads", threads));
    header.emplace_back("of peak");
    header.emplace_back("scaling");
  }
  if (flags.plain) {
    for (const char* column : {"flash ms", "plain ms", "plain / flash", "flash MiB", "plain MiB"}) {
      header.emplace_back(column);
    }
  }
  Table table(header);
  for (const Json& row : rows) {
    std::vector<std::string> cells = {row["pass"],
                                      row["dtype"],
                                      std::to_string(row["head_dim"].get<std::int64_t>()),
                                      std::to_string(row["seq_length"].get<std::int64_t>()),
                                      row["causal"].get<bool>() ? "causal" : "full",
                                      speed_cell(row, "one_thread"),
                                      number(row, "one_thread_peak_share", "{:.2f}")};
    if (threads > 1) {
      cells.push_back(speed_cell(row, "threads"));
      cells.push_back(number(row, "threads_peak_share", "{:.2f}"));
      cells.push_back(number(row, "scaling_ratio", "{:.2f}x"));
    }
    if (flags.plain) {
      cells.push_back(number(row, "flash_ms", "{:.2f}"));
      cells.push_back(number(row, "plain_ms", "{:.2f}"));
      cells.push_back(number(row, "plain_over_flash_ratio", "{:.2f}x"));
      for (const char* key : {"flash_extra_bytes", "plain_extra_bytes"}) {
        cells.push_back(fmt::format("{:.1f}", row[key].get<double>() / (1 << 20)));
      }
    }
    table.add_row(std::move(cells));
  }
  table.print();
  fmt::print(
      "\nHow to read it: forward counts 4 B H S S D operations and backward 10, half of them when\n"
      "causal; their peak is the float32 FMA rate of as many threads. Decode counts the bytes of\n"
      "keys and values ({} MiB, so that the processor's caches do not help); its peak is the rate\n"
      "of reading memory. Kernel and peak are measured in turn; figures are medians.\n",
      flags.cache_mib);
}

// One line a row; the columns are all keys in the order in which they first come.
void print_csv(const Json& rows) {
  std::vector<std::string> columns;
  for (const Json& row : rows) {
    for (const auto& [key, value] : row.items()) {
      if (std::ranges::find(columns, key) == columns.end()) columns.push_back(key);
    }
  }
  fmt::print("{}\n", fmt::join(columns, ","));
  for (const Json& row : rows) {
    std::vector<std::string> cells;
    for (const std::string& column : columns) {
      const Json value = row.value(column, Json(""));
      cells.push_back(value.is_string() ? value.get<std::string>() : value.dump());
    }
    fmt::print("{}\n", fmt::join(cells, ","));
  }
}

// `benchmark --seq-length 8 attention` would otherwise silently ignore the flag.
void refuse_flags_before(const CLI::App& benchmark) {
  for (const CLI::Option* option : benchmark.get_options()) {
    if (option->count() == 0) continue;
    throw Error(ErrorCode::invalid_argument,
                fmt::format("[benchmark attention] {} must come after the word attention",
                            option->get_name()));
  }
}

void run(const GridFlags& flags) {
  const std::vector<KernelShape> grid = grid_of(flags);
  Json rows = Json::array();
  {
    Progress progress("benchmark attention", static_cast<std::int64_t>(grid.size()));
    for (const KernelShape& shape : grid) {
      progress.step(fmt::format("{} {}, head_dim {}, sequence {}", pass_name(shape.pass),
                                dtype_name(shape.dtype), shape.head_dim, shape.seq_length));
      rows.push_back(measure_kernel(shape, flags));
    }
  }
  flags.csv ? print_csv(rows) : print_table(rows, flags);
  write_json(flags.common, {{"threads", num_threads()},
                            {"repetitions", flags.repetitions},
                            {"plain", flags.plain},
                            {"cache_mib", flags.cache_mib},
                            {"cases", rows}});
}

}  // namespace

void add_benchmark_attention(CLI::App& benchmark, ExitCode& exit_code) {
  auto flags = std::make_shared<GridFlags>();
  CLI::App* command =
      add_command(benchmark, flags->common, "attention",
                  "Time the attention kernels alone: GFLOP/s, GB/s, share of the machine's peak.",
                  "flashmha benchmark attention --pass forward --head-dim 64,128 --dtype float32");
  const auto add_sizes = [&](const std::string& name, std::vector<std::int64_t>& sizes,
                             const std::string& what) {
    command->add_option(name, sizes, what)
        ->delimiter(',')
        ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 31))
        ->type_name("N,...")
        ->capture_default_str();
  };
  const auto add_size = [&](const std::string& name, std::int64_t& size, const std::string& what) {
    command->add_option(name, size, what)
        ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 31))
        ->type_name("N")
        ->capture_default_str();
  };
  auto pass = std::make_shared<std::string>("all");
  command->add_option("--pass", *pass, "forward, backward, decode or all")
      ->check(CLI::IsMember({"forward", "backward", "decode", "all"}))
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--dtype", flags->dtypes, "Element types")
      ->delimiter(',')
      ->transform(one_of(kDtypes))
      ->type_name("NAME")
      ->default_str("float32,bfloat16,float16");
  add_sizes("--head-dim", flags->head_dims, "Sizes of a head");
  add_sizes("--seq-length", flags->seq_lengths, "Tokens in a sequence, or in the cache");
  command->add_option("--causal", flags->causal, "With and without the causal mask")
      ->delimiter(',')
      ->type_name("BOOL,...")
      ->default_str("false,true");
  add_size("--batch-size", flags->batch_size, "Sequences in a batch (decode: at least)");
  add_size("--heads", flags->heads, "Query heads");
  add_size("--kv-heads", flags->kv_heads, "Key and value heads; 0: as many as --heads");
  add_size("--cache-mib", flags->cache_mib, "MiB of keys and values of a decoding step, at least");
  command->add_flag("--plain", flags->plain, "Time attention with materialised scores, too");
  command->add_flag("--csv", flags->csv, "Print comma-separated values instead of a table");
  command->add_option("--repetitions", flags->repetitions, "Runs of each measurement, at least")
      ->check(CLI::Range(1, 1000))
      ->type_name("N")
      ->capture_default_str();
  command->callback([flags, pass, &benchmark, &exit_code] {
    refuse_flags_before(benchmark);
    prepare(flags->common);
    flags->passes = kPasses.at(*pass);
    run(*flags);
    exit_code = ExitCode::ok;
  });
}

}  // namespace flashmha::app
