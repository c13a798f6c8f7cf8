// Calls of the public functions on an Instance.
#pragma once

#include "flashmha/attention.h"
#include "tests/attention/instance.h"

namespace flashmha::tests {

inline AttentionResult forward(const AttentionCall& call) {
  if (call.cache.k.defined()) {
    return flash_attn_with_kvcache(call.q, call.cache, call.append, call.options);
  }
  if (call.sequences.cu_seqlens_q.defined()) {
    return flash_attn_varlen_func(call.q, call.k, call.v, call.sequences, call.options);
  }
  return flash_attn_func(call.q, call.k, call.v, call.options);
}

inline AttentionGradients backward(const Instance& instance, const AttentionResult& result) {
  const AttentionCall& call = instance.call;
  if (call.sequences.cu_seqlens_q.defined()) {
    return flash_attn_varlen_backward(instance.dout, call.q, call.k, call.v, result, call.sequences,
                                      call.options, instance.dlse);
  }
  return flash_attn_backward(instance.dout, call.q, call.k, call.v, result, call.options,
                             instance.dlse);
}

// Element of a strided view by its row-major index.
template <class T>
T& element(const TensorView& view, std::int64_t index) {
  std::int64_t offset = 0;
  for (int dim = view.rank() - 1; dim >= 0; --dim) {
    offset += index % view.shape[dim] * view.strides[dim];
    index /= view.shape[dim];
  }
  return view.as<T>()[offset];
}

}  // namespace flashmha::tests
