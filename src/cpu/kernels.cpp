// What the CPU backend offers to the registry.

#include <array>
#include <string>

#include "attention/registry.h"
#include "core/check.h"
#include "cpu/backward.h"
#include "cpu/forward.h"

namespace flashmha {
namespace {

// Empty, or why no kernel of this backend serves the problem.
std::string refuse(const Problem& problem, Pass pass) {
  if (problem.pass != pass) return "serves another pass";
  if (problem.device.type != DeviceType::cpu) {
    return fmt::format("serves tensors on cpu only; these are on {}", device_name(problem.device));
  }
  if (problem.dtype == DType::float64) return "float64 is served by the reference only";
  return {};
}

template <Pass pass>
std::string refuse_all_but(const Problem& problem) {
  return refuse(problem, pass);
}

void launch_decode(const Problem& problem, const AttentionCall& call,
                   std::span<std::byte> workspace, Stream stream) {
  cpu::append_kv(problem, call);
  cpu::launch_forward(problem, call, workspace, stream);
}

}  // namespace

std::span<const KernelEntry> cpu_kernels() {
  static constexpr std::array<KernelEntry, 3> kEntries = {{
      {.name = "cpu_forward",
       .refuse = refuse_all_but<Pass::forward>,
       .workspace_bytes = cpu::forward_workspace_bytes,
       .launch = cpu::launch_forward},
      {.name = "cpu_backward",
       .refuse = refuse_all_but<Pass::backward>,
       .workspace_bytes = cpu::backward_workspace_bytes,
       .launch = cpu::launch_backward},
      {.name = "cpu_decode",
       .refuse = refuse_all_but<Pass::decode>,
       .workspace_bytes = cpu::forward_workspace_bytes,
       .launch = launch_decode},
  }};
  return kEntries;
}

}  // namespace flashmha
