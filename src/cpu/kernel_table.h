#pragma once

#include "cpu/attention_tile.h"
#include "cpu/gemm_kernels.h"
#include "cpu/probe.h"
#include "cpu/row_kernels.h"

namespace flashmha::cpu {

// What one tier (one instruction set) exports. Every kernel source of the room is compiled once for
// each tier, into namespace flashmha::cpu::<tier>; nothing else of that namespace is called from
// outside.
struct KernelTable {
  const char* name;
  int lanes;      // floats in a vector
  int tile_rows;  // register tile of the matrix products
  int tile_columns;
  const ProbeKernels* probe;
  const GemmKernels* gemm;
  const RowKernels* rows;
  const ForwardKernels* forward;
  const DecodeKernels* decode;
  const BackwardKernels* backward;
};

}  // namespace flashmha::cpu
