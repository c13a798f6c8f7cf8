// Host side of the portable kernels.
#pragma once

#include <span>
#include <string>

#include "cuda/sm80/launch_forward.h"
#include "flashmha/plan.h"

namespace flashmha::cuda::sm80 {

// Empty, or why no portable kernel serves the problem.
std::string refuse(const Problem& problem, Pass pass);

// Queues the instance of the forward kernel that fits.
void run_forward(const Problem& problem, const AttentionCall& call, const ForwardParams& params,
                 const Splits& splits, Stream stream);

void launch_forward(const Problem& problem, const AttentionCall& call,
                    std::span<std::byte> workspace, Stream stream);

// Whether the problem has more than bands for masks; whether the call needs the instances that
// serve everything.
bool has_options(const Problem& problem);
bool needs_general(const Problem& problem, const ForwardParams& params);

std::string refuse_backward(const Problem& problem);
std::size_t backward_workspace_bytes(const Problem& problem);
void launch_backward(const Problem& problem, const AttentionCall& call,
                     std::span<std::byte> workspace, Stream stream);

std::size_t decode_workspace_bytes(const Problem& problem);
void launch_decode(const Problem& problem, const AttentionCall& call,
                   std::span<std::byte> workspace, Stream stream);

}  // namespace flashmha::cuda::sm80
