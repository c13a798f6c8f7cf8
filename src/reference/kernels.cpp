// The reference: the specification of every other backend. It serves every legal problem on a CPU.
#include <array>

#include "attention/registry.h"
#include "core/check.h"
#include "reference/passes.h"

namespace flashmha {
namespace {

std::string refuse(const Problem& problem) {
  if (problem.device.type == DeviceType::cpu) return {};
  return fmt::format("serves tensors on cpu only; these are on {}", device_name(problem.device));
}

std::size_t workspace_bytes(const Problem& problem) {
  return problem.pass == Pass::backward ? 0 : reference::forward_workspace_bytes(problem);
}

template <class T>
void launch_typed(const Problem& problem, const AttentionCall& call,
                  std::span<std::byte> workspace) {
  if (problem.pass == Pass::backward) return reference::backward<T>(problem, call);
  if (problem.pass == Pass::decode) reference::append_kv<T>(problem, call);
  reference::forward<T>(problem, call, workspace);
}

void launch(const Problem& problem, const AttentionCall& call, std::span<std::byte> workspace,
            Stream /*stream*/) {
  switch (problem.dtype) {
    case DType::float32: return launch_typed<float>(problem, call, workspace);
    case DType::bfloat16: return launch_typed<BFloat16>(problem, call, workspace);
    case DType::float16: return launch_typed<Float16>(problem, call, workspace);
    case DType::float64: return launch_typed<double>(problem, call, workspace);
    default: fail(ErrorCode::unsupported, "[reference] no {}", dtype_name(problem.dtype));
  }
}

}  // namespace

std::span<const KernelEntry> reference_kernels() {
  static constexpr std::array<KernelEntry, 1> kEntries = {{{.name = "reference",
                                                            .refuse = refuse,
                                                            .workspace_bytes = workspace_bytes,
                                                            .launch = launch}}};
  return kEntries;
}

}  // namespace flashmha
