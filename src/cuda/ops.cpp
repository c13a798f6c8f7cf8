#include "core/check.h"
#include "ops/table.h"

namespace flashmha {

const OpsTable& cuda_ops() {
  fail(ErrorCode::unsupported,
       "[ops] layer operations have no CUDA kernels in this version; keep layers and models on the "
       "CPU. Attention itself runs on a GPU");
}

}  // namespace flashmha
