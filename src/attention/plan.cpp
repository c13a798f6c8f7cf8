// From a problem to the kernel that serves it, and the launch.
#include "flashmha/plan.h"

#include <cstdlib>

#include "attention/registry.h"
#include "core/allocator.h"
#include "core/check.h"

namespace flashmha {
namespace {

// The entries to consider: all, or the one that FLASHMHA_FORCE_KERNEL names.
std::span<const KernelEntry* const> candidates() {
  const std::vector<const KernelEntry*>& entries = registry();
  const char* forced = std::getenv("FLASHMHA_FORCE_KERNEL");
  if (forced == nullptr || *forced == '\0') return entries;
  std::string names;
  for (const KernelEntry* const& entry : entries) {
    if (entry->name == forced) return {&entry, 1};
    names += (names.empty() ? "" : ", ") + std::string(entry->name);
  }
  fail(ErrorCode::invalid_argument, "[make_plan] FLASHMHA_FORCE_KERNEL is '{}'; kernels are: {}",
       forced, names);
}

}  // namespace

const std::vector<const KernelEntry*>& registry() {
  static const std::vector<const KernelEntry*> entries = [] {
    std::vector<const KernelEntry*> all;
    for (const auto kernels : {cuda_kernels(), cpu_kernels(), reference_kernels()}) {
      for (const KernelEntry& entry : kernels)
        all.push_back(&entry);
    }
    return all;
  }();
  return entries;
}

std::vector<Offer> query(const Problem& problem) {
  std::vector<Offer> offers;
  for (const KernelEntry* entry : registry()) {
    offers.push_back({entry->name, entry->refuse(problem)});
  }
  return offers;
}

Plan make_plan(const Problem& problem) {
  const std::span<const KernelEntry* const> entries = candidates();
  for (const KernelEntry* entry : entries) {
    if (entry->refuse(problem).empty()) return {entry, problem, entry->workspace_bytes(problem)};
  }
  std::string reasons;
  for (const KernelEntry* entry : entries)
    reasons += fmt::format("\n  {}: {}", entry->name, entry->refuse(problem));
  fail(ErrorCode::unsupported, "[make_plan] no kernel serves: {}{}", describe(problem), reasons);
}

Plan make_plan(const AttentionCall& call) {
  return make_plan(make_problem(call));
}

void run(const Plan& plan, const AttentionCall& call, std::span<std::byte> workspace,
         Stream stream) {
  check(plan.kernel != nullptr, "[run] the plan is empty: make it with make_plan");
  const Problem problem = make_problem(call);
  if (problem != plan.problem) {
    fail(ErrorCode::invalid_argument, "[run] the call does not fit the plan; planned {}; got {}",
         describe(plan.problem), describe(problem));
  }
  check(workspace.size() >= plan.workspace_bytes,
        "[run] the plan needs {} bytes of workspace; got {}", plan.workspace_bytes,
        workspace.size());
  const auto address = reinterpret_cast<std::uintptr_t>(workspace.data());
  check(plan.workspace_bytes == 0 || address % kAlignment == 0,
        "[run] the workspace must be aligned to {} bytes", kAlignment);
  plan.kernel->launch(problem, call, workspace.first(plan.workspace_bytes), stream);
}

}  // namespace flashmha
