// The functional test program: every kernel against the specification on the list of cases.
//
//   test_flash_attention                smoke and degenerate cases, a sample of the full grid,
//                                       long sequences, fuzzing
//
//   test_flash_attention --full         the whole grid
//
//   test_flash_attention --set smoke    one set: smoke, degenerate, sample, full, long or fuzz
//
//   test_flash_attention --device cuda  on a GPU; cases in float32 are taken in bfloat16
//
// Exit code: 0 if every kernel was right and, on the CPU, every pass of every case was served by a
// kernel under test; 1 if not, 2 for bad usage, 77 if there is no such GPU.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "flashmha/error.h"
#include "tests/attention/instance.h"
#include "tests/attention/run_case.h"
#include "tests/cases.h"

namespace flashmha::tests {
namespace {

struct Arguments {
  bool full = false;
  std::string set;
  std::string kernel;
  std::string device = "cpu";
  int num_fuzz = 150;
  bool list = false;
};

struct Totals {
  std::map<std::string, int> served;    // passes compared, by pass
  std::map<std::string, int> refusals;  // by reason
  std::vector<std::string> failures;
  int num_cases = 0;
  int num_unserved = 0;  // passes that no kernel took
  double worst_ratio = 0;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void run_one(const Case& spec, std::uint64_t seed, const Selection& selection, Totals& totals) {
  ++totals.num_cases;
  CaseReport report;
  try {
    report = run_case(spec, seed, selection);
  } catch (const Error& error) {
    report.passes.push_back({.pass = "all", .failures = {fmt::format("threw: {}", error.what())}});
  }
  for (const PassReport& pass : report.passes) {
    totals.served[pass.pass] += pass.num_served;
    totals.worst_ratio = std::max(totals.worst_ratio, pass.worst_ratio);
    if (pass.num_served > 0 || !pass.failures.empty()) continue;
    ++totals.num_unserved;
    for (const std::string& refusal : pass.refusals)
      ++totals.refusals[refusal];
  }
  if (report.ok()) return;
  totals.failures.push_back(describe(spec));
  fmt::print("FAILED (seed {}) {}\n{}", seed, describe(spec), report.text());
}

// A GPU's flash kernels take 16-bit types only.
Case on_device(Case spec, Device device) {
  if (device.type == DeviceType::cuda && spec.dtype == DType::float32) {
    spec.dtype = DType::bfloat16;
  }
  return spec;
}

void run_set(const std::string& name, const std::vector<Case>& list, const Arguments& arguments,
             Totals& totals) {
  const auto start = std::chrono::steady_clock::now();
  const Selection selection{arguments.kernel, parse_device(arguments.device)};
  auto last_line = start;
  int done = 0;
  for (const Case& spec : list) {
    if (arguments.list) {
      fmt::print("{}: {}\n", name, describe(spec));
    } else {
      run_one(on_device(spec, selection.device), test_seed() + static_cast<std::uint64_t>(done),
              selection, totals);
    }
    ++done;
    if (seconds_since(last_line) > 5) {
      fmt::print("{}: {} of {} cases, {:.0f} s\n", name, done, list.size(), seconds_since(start));
      std::fflush(stdout);
      last_line = std::chrono::steady_clock::now();
    }
  }
  fmt::print("{}: {} cases in {:.1f} s\n", name, done, seconds_since(start));
  std::fflush(stdout);
}

std::vector<Case> named_set(const std::string& name, const Arguments& arguments) {
  if (name == "smoke") return cases(kSmoke);
  if (name == "degenerate") return cases(kDegenerate);
  if (name == "full") return cases(kFull);
  if (name == "long") return cases(kLong);
  std::vector<Case> list;
  if (name == "sample") {
    const std::vector<Case> full = cases(kFull);
    for (std::size_t i = test_seed() % 4; i < full.size(); i += 4)
      list.push_back(full[i]);
  } else {
    for (int i = 0; i < arguments.num_fuzz; ++i) {
      list.push_back(random_case(test_seed() + static_cast<std::uint64_t>(i)));
    }
  }
  return list;
}

// A GPU's kernels may refuse; then the caller knows why. On the CPU everything is served.
bool is_good(const Totals& totals, Device device) {
  const bool may_refuse = device.type == DeviceType::cuda;
  return totals.failures.empty() && (may_refuse || totals.num_unserved == 0);
}

int report(const Totals& totals, Device device) {
  for (const auto& [pass, count] : totals.served) {
    fmt::print("{:9} {} comparisons with the specification\n", pass, count);
  }
  if (totals.num_unserved > 0) {
    fmt::print("refused by every kernel under test: {} passes{}\n", totals.num_unserved,
               device.type == DeviceType::cpu ? "; on the CPU this is a failure" : "");
    for (const auto& [reason, count] : totals.refusals)
      fmt::print("  {:4} x {}\n", count, reason);
  }
  fmt::print("largest error: {:.2f} of what is allowed\n", totals.worst_ratio);
  fmt::print("{} of {} cases failed\n", totals.failures.size(), totals.num_cases);
  return is_good(totals, device) ? 0 : 1;
}

int run(const Arguments& arguments) {
  const Device device = parse_device(arguments.device);
  if (device.index >= num_devices(device.type)) {
    constexpr int kSkipped = 77;
    fmt::print("skipped: {} is not there; {} GPUs can be used\n", arguments.device,
               num_devices(DeviceType::cuda));
    return kSkipped;
  }
  if (device.type == DeviceType::cpu) fmt::print("instruction set: {}\n", cpu::kernels().name);
  std::vector<std::string> sets{"smoke", "degenerate", "sample", "long", "fuzz"};
  if (arguments.full) sets[2] = "full";
  if (!arguments.set.empty()) sets = {arguments.set};
  Totals totals;
  for (const std::string& name : sets) {
    run_set(name, named_set(name, arguments), arguments, totals);
  }
  return arguments.list ? 0 : report(totals, device);
}

}  // namespace
}  // namespace flashmha::tests

int main(int argc, char** argv) {
  using namespace flashmha::tests;
  Arguments arguments;
  CLI::App app("Compares every kernel with the double-precision specification.");
  app.add_flag("--full", arguments.full, "run the whole grid instead of a sample");
  app.add_option("--set", arguments.set, "run one set of cases")
      ->check(CLI::IsMember({"smoke", "degenerate", "sample", "full", "long", "fuzz"}));
  app.add_option("--kernel", arguments.kernel,
                 "test this kernel ('*': the reference in its own dtypes too)");
  app.add_option("--device", arguments.device, "where the tensors are: cpu, cuda or cuda:N");
  app.add_option("--num-fuzz", arguments.num_fuzz, "random cases of the fuzz set");
  app.add_flag("--list", arguments.list, "only list the cases");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    return run(arguments);
  } catch (const flashmha::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
