// Machines other than x86-64: the portable tier alone.

#include <array>

#include "cpu/isa.h"

namespace flashmha::cpu {

namespace portable {
extern const KernelTable table;
}

std::span<const Tier> compiled_tiers() {
  static constexpr std::array kTiers = {Tier{&portable::table, [] { return true; }}};
  return kTiers;
}

}  // namespace flashmha::cpu
