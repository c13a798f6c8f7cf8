// The seam between the operations and the backends: every backend gives one table, whose functions
// have the signatures of ops.h. They are called with checked arguments and never with empty
// outputs.
#pragma once

#include "flashmha/ops.h"

namespace flashmha {

struct OpsTable {
  decltype(&ops::matmul) matmul;
  decltype(&ops::bias_gradient) bias_gradient;
  decltype(&ops::rms_norm) rms_norm;
  decltype(&ops::rms_norm_backward) rms_norm_backward;
  decltype(&ops::glu) glu;
  decltype(&ops::glu_backward) glu_backward;
  decltype(&ops::softcap) softcap;
  decltype(&ops::softcap_backward) softcap_backward;
  decltype(&ops::add) add;
  decltype(&ops::rotary) rotary;
  decltype(&ops::rotary_backward) rotary_backward;
  decltype(&ops::softmax) softmax;
  decltype(&ops::softmax_backward) softmax_backward;
  decltype(&ops::attention_dropout) attention_dropout;
  decltype(&ops::gather_rows) gather_rows;
  decltype(&ops::scatter_rows) scatter_rows;
  decltype(&ops::unpad) unpad;
  decltype(&ops::embedding) embedding;
  decltype(&ops::embedding_backward) embedding_backward;
  decltype(&ops::argmax) argmax;
  decltype(&ops::penalise) penalise;
  decltype(&ops::sample) sample;
  decltype(&ops::cross_entropy) cross_entropy;
  decltype(&ops::cross_entropy_backward) cross_entropy_backward;
  decltype(&ops::gradient_norm) gradient_norm;
  void (*adamw)(std::span<const ops::AdamWState>, const ops::AdamWStep&, const ops::AdamWOptions&,
                Stream);
};

const OpsTable& cpu_ops();
// Throws Error(device) if the library was built without CUDA.
const OpsTable& cuda_ops();

}  // namespace flashmha
