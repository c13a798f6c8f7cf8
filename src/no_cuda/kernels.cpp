// A build without CUDA: the backend is listed, so that query() can say why it does not serve.
#include "attention/registry.h"
#include "core/check.h"

namespace flashmha {
namespace {

std::string refuse(const Problem& problem) {
  return problem.device.type == DeviceType::cuda ? "this FlashMHA was built without CUDA"
                                                 : "serves tensors on a GPU; these are on the CPU";
}

std::size_t workspace_bytes(const Problem&) {
  return 0;
}

void launch(const Problem&, const AttentionCall& call, std::span<std::byte>, Stream) {
  fail(ErrorCode::unsupported, "[{}] this FlashMHA was built without CUDA", call.name);
}

constexpr KernelEntry kCuda{"cuda", refuse, workspace_bytes, launch};

}  // namespace

std::span<const KernelEntry> cuda_kernels() {
  return {&kCuda, 1};
}

}  // namespace flashmha
