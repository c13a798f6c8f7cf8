#include "cpu/isa.h"

#include <cstdlib>
#include <string_view>

#include "core/check.h"

namespace flashmha::cpu {

std::string supported_tier_names() {
  std::string names;
  for (const Tier& tier : compiled_tiers()) {
    if (!tier.supported()) continue;
    if (!names.empty()) names += ", ";
    names += tier.table->name;
  }
  return names;
}

const KernelTable& select_kernels(const char* name) {
  const std::string_view wanted = name ? name : "";
  const KernelTable* selected = nullptr;
  for (const Tier& tier : compiled_tiers()) {
    if ((wanted.empty() || wanted == tier.table->name) && tier.supported()) selected = tier.table;
  }
  check(
      selected != nullptr,
      "[FLASHMHA_CPU_ISA] must name an instruction set that this machine can run ({}); got \"{}\"",
      supported_tier_names(), wanted);
  return *selected;
}

const KernelTable& kernels() {
  static const KernelTable& selected = select_kernels(std::getenv("FLASHMHA_CPU_ISA"));
  return selected;
}

}  // namespace flashmha::cpu
