#pragma once

#include <cstddef>
#include <span>

#include "flashmha/plan.h"

namespace flashmha::cpu {

std::size_t backward_workspace_bytes(const Problem& problem);
void launch_backward(const Problem& problem, const AttentionCall& call,
                     std::span<std::byte> workspace, Stream stream);

}  // namespace flashmha::cpu
