// cuBLASLt's functions, loaded when the first product is computed. Include it instead of
// <cublasLt.h>: the names of the functions mean the loaded ones then.
//
// It is not linked: attention does not need it, and it is half a gigabyte that a system may have
// under a path of its own, as PyTorch's packages do.
#pragma once

#include <cublasLt.h>

namespace flashmha::cuda::ops {

struct CublasLt {
  decltype(&::cublasLtCreate) create;
  decltype(&::cublasLtGetStatusString) status_string;
  decltype(&::cublasLtMatmul) matmul;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) get_heuristic;
  decltype(&::cublasLtMatmulDescInit_internal) init_operation;
  decltype(&::cublasLtMatmulDescSetAttribute) set_operation;
  decltype(&::cublasLtMatrixLayoutInit_internal) init_layout;
  decltype(&::cublasLtMatrixLayoutSetAttribute) set_layout;
  decltype(&::cublasLtMatmulPreferenceInit_internal) init_preference;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) set_preference;
};

// Throws unsupported where the library is not found.
const CublasLt& cublaslt();

// Objects, so that an unqualified call means these and not the declarations of <cublasLt.h>.
// NOLINTBEGIN(readability-identifier-naming): they have the names of cuBLASLt's functions.
inline constexpr auto cublasLtCreate = [](auto... args) { return cublaslt().create(args...); };
inline constexpr auto cublasLtGetStatusString = [](auto... args) {
  return cublaslt().status_string(args...);
};
inline constexpr auto cublasLtMatmul = [](auto... args) { return cublaslt().matmul(args...); };
inline constexpr auto cublasLtMatmulAlgoGetHeuristic = [](auto... args) {
  return cublaslt().get_heuristic(args...);
};
inline constexpr auto cublasLtMatmulDescInit = [](auto* operation, auto... args) {
  return cublaslt().init_operation(operation, sizeof(*operation), args...);
};
inline constexpr auto cublasLtMatmulDescSetAttribute = [](auto... args) {
  return cublaslt().set_operation(args...);
};
inline constexpr auto cublasLtMatrixLayoutInit = [](auto* layout, auto... args) {
  return cublaslt().init_layout(layout, sizeof(*layout), args...);
};
inline constexpr auto cublasLtMatrixLayoutSetAttribute = [](auto... args) {
  return cublaslt().set_layout(args...);
};
inline constexpr auto cublasLtMatmulPreferenceInit = [](auto* preference) {
  return cublaslt().init_preference(preference, sizeof(*preference));
};
inline constexpr auto cublasLtMatmulPreferenceSetAttribute = [](auto... args) {
  return cublaslt().set_preference(args...);
};
// NOLINTEND(readability-identifier-naming)

}  // namespace flashmha::cuda::ops
