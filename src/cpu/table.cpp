// Compiled once for each tier.

#include "cpu/kernel_table.h"
#include "cpu/microkernel.h"

namespace flashmha::cpu::FLASHMHA_ISA {

extern const ProbeKernels probe_kernels;
extern const GemmKernels gemm_kernels;
extern const RowKernels row_kernels;
extern const ForwardKernels forward_kernels;
extern const DecodeKernels decode_kernels;
extern const BackwardKernels backward_kernels;

extern const KernelTable table;
constexpr KernelTable table = {
    .name = kTierName,
    .lanes = kLanes,
    .tile_rows = kTileRows,
    .tile_columns = kTileColumns,
    .probe = &probe_kernels,
    .gemm = &gemm_kernels,
    .rows = &row_kernels,
    .forward = &forward_kernels,
    .decode = &decode_kernels,
    .backward = &backward_kernels,
};

}  // namespace flashmha::cpu::FLASHMHA_ISA
