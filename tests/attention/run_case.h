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

// Which kernels take part: the one of this name, all but the reference for "", all for "*"; and
// where the tensors are. The specification is computed on the host in any case.
struct Selection {
  std::string kernel;
  Device device;
  bool takes(const KernelEntry& entry) const;
};

// Kernels are launched directly, so that none can stand in for another. An error against the
// float64 specification may be as large as
//
//   m * (largest error of the plain implementation in the same dtype)       m = 2, gradients 3
//   + half a unit in the last place of the largest result                   it is rounded
//   + eps * (size of the terms that it is the sum of)                       see Terms
//
// where eps is what float arithmetic costs: 2^-23 (1 + softcap + largest logit * sqrt(head_dim) / 2
// + sqrt(longest sum) / 2), as the errors of a sum of n terms grow like a random walk. The last two
// lines matter where the plain implementation happens to be exact, or terms cancel.
CaseReport run_case(const Case& spec, std::uint64_t seed, const Selection& selection = {});

}  // namespace flashmha::tests
