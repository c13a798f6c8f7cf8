#include "cuda/ops/ops.h"

namespace flashmha {

const OpsTable& cuda_ops() {
  static constexpr OpsTable kTable{
      .matmul = cuda::ops::matmul,
      .bias_gradient = cuda::ops::bias_gradient,
      .rms_norm = cuda::ops::rms_norm,
      .rms_norm_backward = cuda::ops::rms_norm_backward,
      .glu = cuda::ops::glu,
      .glu_backward = cuda::ops::glu_backward,
      .softcap = cuda::ops::softcap,
      .softcap_backward = cuda::ops::softcap_backward,
      .add = cuda::ops::add,
      .rotary = cuda::ops::rotary,
      .rotary_backward = cuda::ops::rotary_backward,
      .softmax = cuda::ops::softmax,
      .softmax_backward = cuda::ops::softmax_backward,
      .attention_dropout = cuda::ops::attention_dropout,
      .gather_rows = cuda::ops::gather_rows,
      .scatter_rows = cuda::ops::scatter_rows,
      .unpad = cuda::ops::unpad,
      .embedding = cuda::ops::embedding,
      .embedding_backward = cuda::ops::embedding_backward,
      .argmax = cuda::ops::argmax,
      .penalise = cuda::ops::penalise,
      .sample = cuda::ops::sample,
      .cross_entropy = cuda::ops::cross_entropy,
      .cross_entropy_backward = cuda::ops::cross_entropy_backward,
      .gradient_norm = cuda::ops::gradient_norm,
      .adamw = cuda::ops::adamw,
  };
  return kTable;
}

}  // namespace flashmha
