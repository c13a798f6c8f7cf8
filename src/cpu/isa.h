#pragma once

#include <span>
#include <string>

#include "cpu/kernel_table.h"

namespace flashmha::cpu {

// One tier that was compiled in, and whether this processor and operating system can run it.
struct Tier {
  const KernelTable* table;
  bool (*supported)();
};

// All tiers of this build, from the most general to the fastest.
std::span<const Tier> compiled_tiers();

// The kernels to use: the last supported tier, or the one named by the environment variable
// FLASHMHA_CPU_ISA. Chosen once, on the first call. Throws invalid_argument when the name is
// unknown or this machine cannot run that tier; the message lists the tiers that it can.
const KernelTable& kernels();

// The rule behind kernels(), for a given name; nullptr or "" chooses the last supported tier.
const KernelTable& select_kernels(const char* name);

// "portable, avx2": the tiers that this machine can run.
std::string supported_tier_names();

}  // namespace flashmha::cpu
