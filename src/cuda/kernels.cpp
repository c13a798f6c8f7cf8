// What the CUDA backend offers to the registry: special kernels first, portable ones behind them.
#include <array>

#include "attention/registry.h"
#include "cuda/sm80/kernels.h"

namespace flashmha {
namespace {

template <Pass pass>
std::string refuse_all_but(const Problem& problem) {
  return cuda::sm80::refuse(problem, pass);
}

std::size_t no_workspace(const Problem&) {
  return 0;
}

}  // namespace

std::span<const KernelEntry> cuda_kernels() {
  static constexpr std::array<KernelEntry, 3> kEntries = {{
      {.name = "sm80_forward",
       .refuse = refuse_all_but<Pass::forward>,
       .workspace_bytes = no_workspace,
       .launch = cuda::sm80::launch_forward},
      {.name = "sm80_backward",
       .refuse = cuda::sm80::refuse_backward,
       .workspace_bytes = cuda::sm80::backward_workspace_bytes,
       .launch = cuda::sm80::launch_backward},
      {.name = "sm80_decode",
       .refuse = refuse_all_but<Pass::decode>,
       .workspace_bytes = cuda::sm80::decode_workspace_bytes,
       .launch = cuda::sm80::launch_decode},
  }};
  return kEntries;
}

}  // namespace flashmha
