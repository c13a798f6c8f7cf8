// flashmha info: the machine, the instruction sets, and what every kernel serves.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <memory>

#include "command.h"
#include "cpu/isa.h"
#include "flashmha/flashmha.h"
#include "machine.h"
#include "table.h"

namespace flashmha::app {
namespace {

struct InfoFlags {
  CommonFlags common;
};

struct TypicalProblem {
  const char* name;
  Pass pass;
  DType dtype;
  DeviceType device;
};

constexpr std::array kTypicalProblems = {
    TypicalProblem{"forward float32", Pass::forward, DType::float32, DeviceType::cpu},
    TypicalProblem{"backward bfloat16", Pass::backward, DType::bfloat16, DeviceType::cpu},
    TypicalProblem{"decode float16", Pass::decode, DType::float16, DeviceType::cpu},
    TypicalProblem{"forward float64", Pass::forward, DType::float64, DeviceType::cpu},
    TypicalProblem{"forward bfloat16 on cuda", Pass::forward, DType::bfloat16, DeviceType::cuda},
};

// Batch 2, sequence 256, 8 query heads on 2 key heads of size 64, causal.
Problem problem_of(const TypicalProblem& typical) {
  Problem problem;
  problem.pass = typical.pass;
  problem.device = {typical.device, 0};
  problem.dtype = typical.dtype;
  const std::int64_t seqlen_q = typical.pass == Pass::decode ? 1 : 256;
  problem.sizes = {.batch = 2,
                   .seqlen_q = seqlen_q,
                   .seqlen_k = 256,
                   .num_heads_q = 8,
                   .num_heads_kv = 2,
                   .head_dim = 64,
                   .head_dim_v = 64,
                   .total_q = 2 * seqlen_q,
                   .total_k = 2 * 256};
  problem.band.right = 0;
  problem.scores.softmax_scale = 0.125f;
  return problem;
}

// Every kernel's answer to every typical problem; an empty refusal means that it serves.
Json offers_json() {
  Json problems = Json::array();
  for (const TypicalProblem& typical : kTypicalProblems) {
    const Problem problem = problem_of(typical);
    Json offers = Json::array();
    for (const Offer& offer : query(problem)) {
      offers.push_back({{"kernel", offer.kernel}, {"refusal", offer.refusal}});
    }
    problems.push_back(
        {{"name", typical.name}, {"problem", describe(problem)}, {"offers", offers}});
  }
  return problems;
}

Json report_json() {
  const Machine machine = inspect_machine();
  return {{"version", kVersion},
          {"compiler", compiler_name()},
          {"cpu_model", machine.cpu_model},
          {"cpu_features", machine.cpu_features},
          {"isa", cpu::kernels().name},
          {"isa_supported", cpu::supported_tier_names()},
          {"num_logical_cpus", machine.num_logical_cpus},
          {"threads", num_threads()},
          {"l1d_cache_bytes", machine.l1d_cache_bytes},
          {"l2_cache_bytes", machine.l2_cache_bytes},
          {"l3_cache_bytes", machine.l3_cache_bytes},
          {"memory_bytes", machine.memory_bytes},
          {"available_memory_bytes", machine.available_memory_bytes},
          {"problems", offers_json()}};
}

std::string size_text(const Json& bytes) {
  const double kibibytes = bytes.get<double>() / 1024;
  if (kibibytes == 0) return "unknown";
  if (kibibytes < 1024) return fmt::format("{:.0f} KiB", kibibytes);
  if (kibibytes < 1024 * 1024) return fmt::format("{:.0f} MiB", kibibytes / 1024);
  return fmt::format("{:.1f} GiB", kibibytes / (1024 * 1024));
}

void print_report(const Json& report) {
  const auto line = [](std::string_view name, const std::string& value) {
    fmt::print("{:<14}{}\n", name, value);
  };
  const auto text = [&](const char* key) { return report[key].get<std::string>(); };
  line("version", text("version") + ", built with " + text("compiler"));
  line("cpu", text("cpu_model"));
  line("cpu features",
       fmt::format("{}", fmt::join(report["cpu_features"].get<std::vector<std::string>>(), " ")));
  line("kernels use", text("isa") + " (this machine can run: " + text("isa_supported") + ")");
  line("threads", fmt::format("{} of {} logical CPUs", report["threads"].get<int>(),
                              report["num_logical_cpus"].get<int>()));
  line("caches",
       fmt::format("L1d {}, L2 {}, L3 {}", size_text(report["l1d_cache_bytes"]),
                   size_text(report["l2_cache_bytes"]), size_text(report["l3_cache_bytes"])));
  line("memory", fmt::format("{}, {} available", size_text(report["memory_bytes"]),
                             size_text(report["available_memory_bytes"])));
  fmt::print("\nWho serves what (the first that does not refuse is taken):\n\n");
  Table table({"problem", "kernel", "answer"}, Table::Align::left);
  for (const Json& problem : report["problems"]) {
    auto name = problem["name"].get<std::string>();  // in the first row of its group only
    for (const Json& offer : problem["offers"]) {
      const auto refusal = offer["refusal"].get<std::string>();
      table.add_row({name, offer["kernel"], refusal.empty() ? "serves" : refusal});
      name.clear();
    }
  }
  table.print();
}

}  // namespace

void add_info(CLI::App& program, ExitCode& exit_code) {
  auto flags = std::make_shared<InfoFlags>();
  CLI::App* command = add_command(program, flags->common, "info",
                                  "Show the machine, and what each kernel serves or refuses.",
                                  "flashmha info --json info.json");
  command->callback([flags, &exit_code] {
    prepare(flags->common);
    const Json report = report_json();
    print_report(report);
    write_json(flags->common, report);
    exit_code = ExitCode::ok;
  });
}

}  // namespace flashmha::app
