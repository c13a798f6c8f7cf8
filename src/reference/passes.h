// The passes of the reference; instantiated for the four element types.
#pragma once

#include <cstddef>
#include <span>

#include "flashmha/plan.h"

namespace flashmha::reference {

// Scratch of one row of scores: seqlen_k doubles for every thread that takes part.
std::size_t forward_workspace_bytes(const Problem& problem);

// out and lse of a forward or decode call.
template <class T>
void forward(const Problem& problem, const AttentionCall& call, std::span<std::byte> workspace);

// Writes append.k, rotated, and append.v into the cache.
template <class T>
void append_kv(const Problem& problem, const AttentionCall& call);

// dq, dk, dv and, where asked for, dbias and dsinks.
template <class T>
void backward(const Problem& problem, const AttentionCall& call);

}  // namespace flashmha::reference
