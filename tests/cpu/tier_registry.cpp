#include "tests/cpu/tier_functions.h"

namespace flashmha::tests {
namespace {

std::vector<const TierFunctions*>& registry() {
  static std::vector<const TierFunctions*> sets;
  return sets;
}

}  // namespace

bool register_tier(const TierFunctions* functions) {
  registry().push_back(functions);
  return true;
}

std::vector<const TierFunctions*> runnable_tiers() {
  std::vector<const TierFunctions*> runnable;
  for (const cpu::Tier& tier : cpu::compiled_tiers()) {
    for (const TierFunctions* functions : registry()) {
      if (std::string(functions->name) == tier.table->name && tier.supported()) {
        runnable.push_back(functions);
      }
    }
  }
  return runnable;
}

}  // namespace flashmha::tests
