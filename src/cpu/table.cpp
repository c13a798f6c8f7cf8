// Compiled once for each tier.

#include "cpu/kernel_table.h"
#include "cpu/microkernel.h"

namespace flashmha::cpu::FLASHMHA_ISA {

extern const ProbeKernels probe_kernels;
extern const RowKernels row_kernels;

extern const KernelTable table;
constexpr KernelTable table = {kTierName, kLanes, kTileRows, kTileColumns, &probe_kernels, &row_kernels};

}  // namespace flashmha::cpu::FLASHMHA_ISA
