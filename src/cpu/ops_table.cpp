#include "cpu/ops.h"

namespace flashmha {

const OpsTable& cpu_ops() {
  static constexpr OpsTable kTable{
      .matmul = cpu::ops::matmul,
      .bias_gradient = cpu::ops::bias_gradient,
      .rms_norm = cpu::ops::rms_norm,
      .rms_norm_backward = cpu::ops::rms_norm_backward,
      .glu = cpu::ops::glu,
      .glu_backward = cpu::ops::glu_backward,
      .softcap = cpu::ops::softcap,
      .softcap_backward = cpu::ops::softcap_backward,
      .add = cpu::ops::add,
      .rotary = cpu::ops::rotary,
      .rotary_backward = cpu::ops::rotary_backward,
      .softmax = cpu::ops::softmax,
      .softmax_backward = cpu::ops::softmax_backward,
      .attention_dropout = cpu::ops::attention_dropout,
      .gather_rows = cpu::ops::gather_rows,
      .scatter_rows = cpu::ops::scatter_rows,
      .unpad = cpu::ops::unpad,
      .embedding = cpu::ops::embedding,
      .embedding_backward = cpu::ops::embedding_backward,
      .argmax = cpu::ops::argmax,
      .penalise = cpu::ops::penalise,
      .sample = cpu::ops::sample,
      .cross_entropy = cpu::ops::cross_entropy,
      .cross_entropy_backward = cpu::ops::cross_entropy_backward,
      .gradient_norm = cpu::ops::gradient_norm,
      .adamw = cpu::ops::adamw,
  };
  return kTable;
}

}  // namespace flashmha
