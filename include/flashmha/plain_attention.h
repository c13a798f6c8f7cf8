// Attention with materialised scores: what FlashAttention is compared with.
#pragma once

#include "flashmha/attention.h"
#include "flashmha/tensor.h"

namespace flashmha::nn {

struct PlainAttentionResult {
  Tensor out;            // [batch, seqlen_q, num_heads_q, head_dim_v]
  Tensor probabilities;  // q's dtype, [batch, num_heads_q, seqlen_q, seqlen_k], before dropout
  Tensor lse;            // float32 [batch, num_heads_q, seqlen_q]
};

// flash_attn_func in three well-made steps: batched matrix product, vectorised softmax in place,
// batched matrix product. Shapes as there. Serves softmax_scale, causal, window, softcap, mask,
// sinks and dropout; alibi_slopes and bias are refused. The baseline of the benchmarks.
PlainAttentionResult plain_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                                     const AttentionOptions& options = {}, Stream stream = {});

// Its gradients; options must equal the forward's.
AttentionGradients plain_attention_backward(const TensorView& dout, const TensorView& q,
                                            const TensorView& k, const TensorView& v,
                                            const PlainAttentionResult& forward,
                                            const AttentionOptions& options = {},
                                            Stream stream = {});

}  // namespace flashmha::nn
