#include "cuda/ops/cublaslt.h"

#include <dlfcn.h>

#include "core/check.h"

namespace flashmha::cuda::ops {
namespace {

template <class Pointer>
void find(void* library, const char* name, Pointer& pointer) {
  void* const symbol = dlsym(library, name);
  check(symbol != nullptr, "[matmul] {} has no {}", FLASHMHA_CUBLASLT, name);
  pointer = reinterpret_cast<Pointer>(symbol);
}

// What the process or its loader knows under the name, else that of an installed toolkit.
void* open_library() {
  for (const char* path : {FLASHMHA_CUBLASLT, "/usr/local/cuda/lib64/" FLASHMHA_CUBLASLT}) {
    if (void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL)) return library;
  }
  fail(ErrorCode::unsupported,
       "[matmul] layers on a GPU need the library cuBLASLt, of the CUDA toolkit or of pip's "
       "nvidia-cublas: {}",
       dlerror());
}

CublasLt load() {
  void* const library = open_library();
  CublasLt functions{};
  find(library, "cublasLtCreate", functions.create);
  find(library, "cublasLtGetStatusString", functions.status_string);
  find(library, "cublasLtMatmul", functions.matmul);
  find(library, "cublasLtMatmulAlgoGetHeuristic", functions.get_heuristic);
  find(library, "cublasLtMatmulDescInit_internal", functions.init_operation);
  find(library, "cublasLtMatmulDescSetAttribute", functions.set_operation);
  find(library, "cublasLtMatrixLayoutInit_internal", functions.init_layout);
  find(library, "cublasLtMatrixLayoutSetAttribute", functions.set_layout);
  find(library, "cublasLtMatmulPreferenceInit_internal", functions.init_preference);
  find(library, "cublasLtMatmulPreferenceSetAttribute", functions.set_preference);
  return functions;
}

}  // namespace

const CublasLt& cublaslt() {
  static const CublasLt functions = load();
  return functions;
}

}  // namespace flashmha::cuda::ops
