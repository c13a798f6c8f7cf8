#include "core/check.h"
#include "ops/table.h"

namespace flashmha {

const OpsTable& cuda_ops() {
  fail(ErrorCode::device, "[ops] tensors are on a GPU, but this FlashMHA was built without CUDA");
}

}  // namespace flashmha
