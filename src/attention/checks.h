// Every rule of the API, stated once. A broken rule throws invalid_argument with the name of the
// function that the caller used, the rule, and the values found.
#pragma once

#include "flashmha/plan.h"

namespace flashmha {

// Checks tensors, shapes and options of a call, and the contents of host index tensors
// (cu_seqlens, cache_seqlens, block_table ...). `problem` already holds the sizes.
void check_tensors(const AttentionCall& call, const Problem& problem);
void check_options(const AttentionCall& call, const Problem& problem);
void check_sequences(const AttentionCall& call, const Problem& problem);
void check_cache(const AttentionCall& call, const Problem& problem);
void check_gradients(const AttentionCall& call, const Problem& problem);

}  // namespace flashmha
