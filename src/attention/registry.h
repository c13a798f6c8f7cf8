// The composition root: which backends there are, in order of preference.
#pragma once

#include <span>

#include "flashmha/plan.h"

namespace flashmha {

std::span<const KernelEntry> cpu_kernels();
std::span<const KernelEntry> cuda_kernels();
std::span<const KernelEntry> reference_kernels();

}  // namespace flashmha
