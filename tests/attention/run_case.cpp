#include "tests/attention/run_case.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/registry.h"
#include "tests/attention/device_call.h"
#include "tests/attention/instance.h"
#include "tests/attention/plain.h"
#include "tests/compare.h"

namespace flashmha::tests {
namespace {

const KernelEntry& specification() {
  return reference_kernels()[0];
}

// Runs an entry on a workspace that is exactly as long as it asked for, poisoned, with a guard
// behind it. Returns what went wrong.
std::string launch(const KernelEntry& entry, const Problem& problem, const AttentionCall& call) {
  constexpr std::int64_t kGuard = 64;
  const auto bytes = static_cast<std::int64_t>(entry.workspace_bytes(problem));
  const Tensor poison = Tensor::empty({bytes + kGuard}, DType::boolean);
  auto* begin = static_cast<std::byte*>(poison.view().data);
  std::memset(begin, 0xFF, static_cast<std::size_t>(bytes + kGuard));
  const Tensor workspace = Tensor::empty(poison.shape(), DType::boolean, problem.device);
  copy(poison, workspace);
  entry.launch(problem, call,
               {static_cast<std::byte*>(workspace.view().data), static_cast<std::size_t>(bytes)},
               {});
  copy(workspace, poison);
  const bool intact = std::all_of(begin + bytes, begin + bytes + kGuard,
                                  [](std::byte value) { return value == std::byte{0xFF}; });
  return intact ? "" : "wrote behind the end of its workspace";
}

// The same with the tensors on another device than the call's. `problem` is of that device.
std::string launch_on(const KernelEntry& entry, const Problem& problem, const AttentionCall& call) {
  if (problem.device == call.q.device) return launch(entry, problem, call);
  DeviceCall copy(call, problem.device);
  const std::string error = launch(entry, problem, copy.call());
  copy.download();
  return error;
}

Problem problem_on(Device device, const AttentionCall& call) {
  Problem problem = make_problem(call);
  if (problem.device != device) problem = make_problem(DeviceCall(call, device).call());
  return problem;
}

// Half a unit in the last place of 1.
double half_ulp(DType dtype) {
  switch (dtype) {
    case DType::bfloat16: return 0x1p-8;
    case DType::float16: return 0x1p-11;
    case DType::float32: return 0x1p-24;
    default: return 0x1p-53;
  }
}

// What one pass should give: the specification's results and, as a measure of what the dtype
// allows, the plain implementation's.
struct Truth {
  Twin exact;
  Twin plain;
  Problem problem;
  Terms terms;

  // `forward`: the truth of the forward, whose unrounded out and lse a backward receives.
  Truth(const AttentionCall& call, DType dtype, const Truth* forward)
      : exact(with_forward(call, forward)),
        plain(run_specification(exact.call)),
        problem(make_problem(exact.call)) {
    terms = problem.pass == Pass::backward ? plain_backward(problem, plain.call, dtype)
                                           : plain_forward(problem, plain.call, dtype);
  }

 private:
  static AttentionCall with_forward(AttentionCall call, const Truth* forward) {
    if (forward != nullptr) {
      call.out = forward->exact.call.out;
      call.lse = forward->exact.call.lse;
    }
    return call;
  }
  static const AttentionCall& run_specification(const AttentionCall& call) {
    launch(specification(), make_problem(call), call);
    return call;
  }
};

class PassRunner {
 public:
  PassRunner(const Case& spec, const Truth& truth, Device device, PassReport& report)
      : spec_(spec), truth_(truth), device_(device), report_(report) {}

  // How far a result may lie from the specification.
  struct Allowance {
    double m = 0;  // times the error of the plain implementation
    double floor = 0;
    double plausible = 0;  // an error of the plain implementation beyond this is a mistake in it,
                           // or in the specification, and no yardstick
  };

  void check(const KernelEntry& entry, const char* name, const TensorView& actual,
             const TensorView& exact, const TensorView& plain, const Allowance& allowance) {
    const auto complain = [&](const std::string& what) {
      report_.failures.push_back(fmt::format("{} {}: {}", report_.pass, entry.name, what));
    };
    double tolerance = allowance.floor;
    if (allowance.m > 0) {
      const Comparison yardstick = compare(name, plain, exact, allowance.plausible);
      if (!yardstick.ok) complain("the plain implementation is wrong: " + yardstick.message);
      tolerance += allowance.m * yardstick.max_error;
    }
    const Comparison comparison = compare(name, actual, exact, tolerance);
    if (tolerance > 0) {
      report_.worst_ratio = std::max(report_.worst_ratio, comparison.max_error / tolerance);
    }
    if (!comparison.ok) complain(comparison.message);
  }

  // What float arithmetic costs a probability, relative to it, and a sum over the sequence.
  double float_epsilon() const {
    const auto root = [](std::int64_t count) { return std::sqrt(static_cast<double>(count)); };
    const double sum = root(std::max({spec_.seqlen_q, spec_.seqlen_k, value_dim(spec_)})) / 2;
    const double logit = truth_.terms.logit * (1 + root(spec_.head_dim) / 2);
    return 0x1p-23 * (1 + static_cast<double>(spec_.softcap) + logit + sum);
  }

  // Every step rounded to the dtype, with a margin of four: what the plain implementation may lose
  // on a sum of terms of this size.
  double plausible(double term, const TensorView& exact) const {
    const double ulp = half_ulp(spec_.dtype);
    return 4 * (float_epsilon() * (ulp / 0x1p-24) * term + ulp * max_abs(exact)) + 1e-6;
  }

  void check_forward(const KernelEntry& entry, const AttentionCall& call) {
    const AttentionCall& exact = truth_.exact.call;
    const AttentionCall& plain = truth_.plain.call;
    check(entry, "out", call.out, exact.out, plain.out,
          {2, half_ulp(spec_.dtype) * max_abs(exact.out) + float_epsilon() * truth_.terms.out,
           plausible(truth_.terms.out, exact.out)});
    // lse is float32 whatever the dtype; only rounded rotated rows may cost more.
    const bool rotated = spec_.rotary_dim > 0 || spec_.dtype == DType::float32;
    // Tensor cores take rotated queries as elements of the dtype. With few rows the plain
    // implementation may be lucky: a quarter of what rounding can do to the largest logit.
    const bool rounds_queries = spec_.rotary_dim > 0 && device_.type == DeviceType::cuda;
    const double rounding = rounds_queries ? half_ulp(spec_.dtype) * truth_.terms.logit / 4 : 0;
    check(entry, "lse", call.lse, exact.lse, plain.lse,
          {rotated ? 2.0 : 0.0, 2 * (float_epsilon() + 0x1p-23 * max_abs(exact.lse)) + rounding,
           plausible(1, exact.lse)});
    check_cache(entry, call);
  }

  // The appended values are copies; appended keys differ by the rounding of the rotation.
  void check_cache(const KernelEntry& entry, const AttentionCall& call) {
    if (!is_cache(spec_)) return;
    const AttentionCall& exact = truth_.exact.call;
    const double rounding = spec_.rotary_dim > 0 ? 2 * half_ulp(spec_.dtype) : 0;
    check(entry, "cache.k", call.cache.k, exact.cache.k, {},
          {.floor = rounding * max_abs(exact.cache.k)});
    check(entry, "cache.v", call.cache.v, exact.cache.v, {}, {});
  }

  void check_backward(const KernelEntry& entry, const AttentionCall& call) {
    const AttentionCall& exact = truth_.exact.call;
    const AttentionCall& plain = truth_.plain.call;
    const Terms& terms = truth_.terms;
    const double ulp = half_ulp(spec_.dtype);
    // lse arrives in float32 and out in the dtype: relative errors of the terms.
    const double epsilon = float_epsilon() + 0x1p-23 * max_abs(exact.lse) + ulp;
    const auto gradient = [&](const char* name, TensorView AttentionCall::*member, double term) {
      const TensorView& expected = exact.*member;
      if (!expected.defined()) return;
      constexpr double kSmallestHalf = 0x1p-24;  // float16 has nothing smaller
      check(
          entry, name, call.*member, expected, plain.*member,
          {3, ulp * max_abs(expected) + epsilon * term + kSmallestHalf, plausible(term, expected)});
    };
    gradient("dq", &AttentionCall::dq, terms.dq);
    gradient("dk", &AttentionCall::dk, terms.dk);
    gradient("dv", &AttentionCall::dv, terms.dv);
    gradient("dbias", &AttentionCall::dbias, terms.dbias);
    gradient("dsinks", &AttentionCall::dsinks, terms.dsinks);
  }

 private:
  const Case& spec_;
  const Truth& truth_;
  Device device_;  // where the kernels ran
  PassReport& report_;
};

// The inputs after a call must be the inputs before it; a cache changes where keys are appended,
// which check_cache looks at.
bool inputs_unchanged(Instance& after, const Case& spec, std::uint64_t seed) {
  Instance before(spec, seed);
  std::vector<Tensor> originals;
  for_each_tensor(before.call, [&](TensorView& tensor, bool is_output) {
    if (!is_output) originals.push_back(clone(tensor));
  });
  bool same = true;
  std::size_t n = 0;
  for_each_tensor(after.call, [&](TensorView& tensor, bool is_output) {
    if (is_output) return;
    const Tensor& original = originals[n++];
    if (&tensor == &after.call.cache.k || &tensor == &after.call.cache.v) return;
    same = same && same_bits(tensor, original);
  });
  return same;
}

// A forward or decode call that leaves out lse must give the same bits of out.
bool same_without_lse(const KernelEntry& entry, const Case& spec, std::uint64_t seed, Device device,
                      const TensorView& out) {
  Instance instance(spec, seed);
  AttentionCall call = instance.call;
  call.lse = {};
  launch_on(entry, problem_on(device, call), call);
  return same_bits(call.out, out);
}

// Runs every selected kernel on a fresh instance made by `prepare` and checks it with `inspect`.
template <class Prepare, class Inspect>
void run_pass(const Case& spec, std::uint64_t seed, const Selection& selection, PassReport& report,
              Prepare prepare, Inspect inspect) {
  for (const KernelEntry* entry : registry()) {
    if (!selection.takes(*entry)) continue;
    Instance instance(spec, seed);
    const AttentionCall call = prepare(instance);
    const Problem problem = problem_on(selection.device, call);
    const std::string refusal = entry->refuse(problem);
    if (!refusal.empty()) {
      report.refusals.push_back(fmt::format("{}: {}", entry->name, refusal));
      continue;
    }
    ++report.num_served;
    const auto complain = [&](const std::string& what) {
      report.failures.push_back(fmt::format("{} {}: {}", report.pass, entry->name, what));
    };
    const std::string error = launch_on(*entry, problem, call);
    if (!error.empty()) complain(error);
    inspect(*entry, call);
    if (!inputs_unchanged(instance, spec, seed)) complain("changed its inputs");
    if (!instance.outputs.borders_intact()) complain("wrote outside its outputs");
  }
}

}  // namespace

bool Selection::takes(const KernelEntry& entry) const {
  if (kernel == "*") return true;
  return kernel.empty() ? entry.name != specification().name : entry.name == kernel;
}

bool CaseReport::ok() const {
  return std::all_of(passes.begin(), passes.end(),
                     [](const PassReport& pass) { return pass.failures.empty(); });
}

std::string CaseReport::text() const {
  std::string text;
  for (const PassReport& pass : passes) {
    for (const std::string& failure : pass.failures)
      text += "  " + failure + "\n";
  }
  return text;
}

CaseReport run_case(const Case& spec, std::uint64_t seed, const Selection& selection) {
  CaseReport report;
  const Instance instance(spec, seed);
  const Truth forward(instance.call, spec.dtype, nullptr);
  report.passes.reserve(2);
  PassReport& first = report.passes.emplace_back();
  first.pass = is_cache(spec) ? "decode" : "forward";
  run_pass(
      spec, seed, selection, first, [](Instance& fresh) { return fresh.call; },
      [&](const KernelEntry& entry, const AttentionCall& call) {
        PassRunner(spec, forward, selection.device, first).check_forward(entry, call);
        if (!same_without_lse(entry, spec, seed, selection.device, call.out)) {
          first.failures.push_back(
              fmt::format("{} {}: out differs where lse is left out", first.pass, entry.name));
        }
      });
  if (!has_backward(spec)) return report;

  // The backward of a kernel receives what a forward of the same call gave, as users have it.
  const auto backward_call = [&](Instance& fresh) {
    const KernelEntry& entry =
        selection.kernel == specification().name ? specification() : *make_plan(fresh.call).kernel;
    launch(entry, make_problem(fresh.call), fresh.call);
    return fresh.backward_call(fresh.call.out, fresh.call.lse);
  };
  Instance fresh(spec, seed);
  const Truth backward(backward_call(fresh), spec.dtype, &forward);
  PassReport& second = report.passes.emplace_back();
  second.pass = "backward";
  run_pass(spec, seed, selection, second, backward_call,
           [&](const KernelEntry& entry, const AttentionCall& call) {
             PassRunner(spec, backward, selection.device, second).check_backward(entry, call);
           });
  return report;
}

}  // namespace flashmha::tests
