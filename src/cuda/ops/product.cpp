#include "cuda/ops/product.h"

#include <array>
#include <map>
#include <mutex>
#include <optional>

#include "cuda/error.h"
#include "cuda/ops/cublaslt.h"

namespace flashmha::cuda::ops {
namespace {

void check_cublas(cublasStatus_t status, const char* what, Device device) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  fail(ErrorCode::device, "[matmul] {} failed on {}: {}", what, device_name(device),
       cublasLtGetStatusString(status));
}

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16: return CUDA_R_16BF;
    case DType::float16: return CUDA_R_16F;
    default: return CUDA_R_32F;
  }
}

// cuBLASLt counts in columns, so it computes c^T = b^T a^T: a matrix whose rows are contiguous is,
// read by columns, its transpose.
struct Descriptions {
  cublasLtMatmulDescOpaque_t operation{};
  cublasLtMatrixLayoutOpaque_t first{}, second{}, result{};

  explicit Descriptions(const Product& p) {
    cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.bias != nullptr) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<std::int32_t>(type_of(p.c.dtype)));
    }
    lay_out(first, p.b, p.n, p.k, p.batch);
    lay_out(second, p.a, p.k, p.m, p.batch);
    lay_out(result, p.c, p.n, p.m, p.batch);
  }

 private:
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value));
  }

  static void lay_out(cublasLtMatrixLayoutOpaque_t& layout, const ProductMatrix& matrix,
                      std::int64_t rows, std::int64_t columns, std::int64_t batch) {
    const auto height = static_cast<std::uint64_t>(matrix.transposed ? columns : rows);
    const auto width = static_cast<std::uint64_t>(matrix.transposed ? rows : columns);
    cublasLtMatrixLayoutInit(&layout, type_of(matrix.dtype), height, width, matrix.leading);
    const auto count = static_cast<std::int32_t>(batch);
    cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                     sizeof(count));
    cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                     &matrix.batch_stride, sizeof(matrix.batch_stride));
  }
};

// The power of two, up to 256 bytes, that all matrices of a batch begin at multiples of.
std::uint32_t alignment_of(const ProductMatrix& matrix) {
  const auto bytes = static_cast<std::uintptr_t>(dtype_bytes(matrix.dtype));
  const std::uintptr_t place = reinterpret_cast<std::uintptr_t>(matrix.data) |
                               (static_cast<std::uintptr_t>(matrix.batch_stride) * bytes);
  std::uint32_t alignment = 256;
  while (place % alignment != 0)
    alignment /= 2;
  return alignment;
}

// What the choice of a kernel depends on.
using Key = std::array<std::int64_t, 20>;

Key key_of(const Product& p, Device device) {
  Key key{device.index, p.m, p.n, p.k, p.batch, p.beta != 0.0f, p.bias != nullptr};
  std::size_t i = 7;
  for (const ProductMatrix* matrix : {&p.a, &p.b, &p.c}) {
    key[i++] = static_cast<std::int64_t>(matrix->dtype) * 1024 + alignment_of(*matrix);
    key[i++] = matrix->transposed ? -matrix->leading : matrix->leading;
    key[i++] = matrix->batch_stride;
  }
  return key;
}

cublasLtHandle_t handle_of(Device device) {
  static std::mutex mutex;
  static std::map<int, cublasLtHandle_t> handles;
  const std::scoped_lock lock(mutex);
  cublasLtHandle_t& handle = handles[device.index];
  if (handle == nullptr) check_cublas(cublasLtCreate(&handle), "cublasLtCreate", device);
  return handle;
}

struct Algorithm {
  cublasLtMatmulAlgo_t algorithm;
  std::size_t workspace_bytes;
};

// Partial sums of a split product are kept in float32: an output of 16 bits is rounded once.
std::optional<Algorithm> choose(const Product& p, Descriptions& d, Device device) {
  cublasLtMatmulPreferenceOpaque_t preference{};
  cublasLtMatmulPreferenceInit(&preference);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value));
  };
  // cuBLASLt's documentation asks for so much on Hopper; few algorithms take any.
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{32} << 20);
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.b));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.a));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.c));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.c));
  cublasLtMatmulHeuristicResult_t found{};
  int num_found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_of(device), &d.operation, &d.first, &d.second,
                                     &d.result, &d.result, &preference, 1, &found, &num_found);
  if (status != CUBLAS_STATUS_SUCCESS || num_found == 0) return {};
  return Algorithm{found.algo, found.workspaceSize};
}

// Choices are remembered; they cost tens of microseconds. The number of shapes that a process meets
// may grow without end (prompts of all lengths): then the memory starts anew.
std::optional<Algorithm> remembered(const Product& p, Descriptions& d, Device device) {
  constexpr std::size_t kMostRemembered = 4096;
  static std::mutex mutex;
  static std::map<Key, std::optional<Algorithm>> choices;
  const Key key = key_of(p, device);
  const std::scoped_lock lock(mutex);
  const auto found = choices.find(key);
  if (found != choices.end()) return found->second;
  if (choices.size() >= kMostRemembered) choices.clear();
  return choices[key] = choose(p, d, device);
}

}  // namespace

bool multiply(const Call& call, const Product& p) {
  Descriptions d(p);
  const auto chosen = remembered(p, d, call.device());
  if (!chosen) return false;
  Tensor scratch;
  if (chosen->workspace_bytes > 0) scratch = call.scratch(chosen->workspace_bytes);
  check_cublas(cublasLtMatmul(handle_of(call.device()), &d.operation, &p.alpha, p.b.data, &d.first,
                              p.a.data, &d.second, &p.beta, p.c.data, &d.result, p.c.data,
                              &d.result, &chosen->algorithm, scratch.view().data,
                              chosen->workspace_bytes, call.stream()),
               "cublasLtMatmul", call.device());
  return true;
}

}  // namespace flashmha::cuda::ops
