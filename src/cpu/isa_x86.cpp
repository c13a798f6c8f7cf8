#include <cpuid.h>

#include <array>

#include "cpu/isa.h"

namespace flashmha::cpu {

namespace portable {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace avx512_bf16 {
extern const KernelTable table;
}

namespace {

// The compiler's run-time checks include the operating system's: without XSAVE support for the wide
// registers the features read as absent.
bool always() {
  return true;
}

// Not a name that clang 14 knows. The operating system's part is AVX2's.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

}  // namespace

std::span<const Tier> compiled_tiers() {
  static constexpr std::array kTiers = {
      Tier{&portable::table, always},
      Tier{&avx2::table, has_avx2},
      Tier{&avx512::table, has_avx512},
      Tier{&avx512_bf16::table, has_avx512_bf16},
  };
  return kTiers;
}

}  // namespace flashmha::cpu
