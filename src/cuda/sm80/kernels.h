// Host side of the portable kernels.
#pragma once

#include <span>
#include <string>

#include "cuda/sm80/forward_params.h"
#include "flashmha/plan.h"

namespace flashmha::cuda::sm80 {

// Empty, or why no portable kernel serves the problem.
std::string refuse(const Problem& problem, Pass pass);

// Queues the instance of the forward kernel that fits.
void run_forward(const Problem& problem, const AttentionCall& call, const ForwardParams& params,
                 Stream stream);

void launch_forward(const Problem& problem, const AttentionCall& call,
                    std::span<std::byte> workspace, Stream stream);

std::size_t decode_workspace_bytes(const Problem& problem);
void launch_decode(const Problem& problem, const AttentionCall& call,
                   std::span<std::byte> workspace, Stream stream);

}  // namespace flashmha::cuda::sm80
