// Runs a case on kernels of the registry and compares every result with the specification.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flashmha/plan.h"
#include "tests/cases.h"

namespace flashmha::tests {

// What one pass (forward, decode or backward) of a case came to.
struct PassReport {
  std::string pass;
  int num_served = 0;                 // kernels that ran and were compared
  std::vector<std::string> failures;  // "cpu_forward: out[1,2] = ..."
  std::vector<std::string> refusals;  // "cpu_forward: reason"; kept apart from failures
  double worst_ratio = 0;             // largest error / tolerance seen
};

struct CaseReport {
  std::vector<PassReport> passes;
  bool ok() const;
  std::string text() const;  // all failures, a line each
};

// Which kernels take part: the one of this name, all but the reference for "", all for "*".
struct Selection {
  std::string kernel;
  bool takes(const KernelEntry& entry) const;
};

// Kernels are launched directly, so that none can stand in for another. The rule: the largest error
// against the float64 specification is at most `m` times the error of a plain implementation in the
// same dtype plus half a unit in the last place of the largest value (m = 2, gradients 3).
CaseReport run_case(const Case& spec, std::uint64_t seed, const Selection& selection = {});

}  // namespace flashmha::tests
