// From the tensors of a call to what kernels are told.
#pragma once

#include "cuda/sm80/forward_params.h"
#include "flashmha/plan.h"

namespace flashmha::cuda {

// Tensors [outer, rows, heads, dim], or [rows, heads, dim] of a ragged batch.
Rows rows_of(const TensorView& tensor);

// Everything but the kernel's own choices, of a forward or decode call.
ForwardParams forward_params(const Problem& problem, const AttentionCall& call);

}  // namespace flashmha::cuda
