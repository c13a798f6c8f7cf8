// Attention on your own memory: forward and backward.
#include <cstdio>
#include <vector>

#include "flashmha/flashmha.h"

int main() {
  using namespace flashmha;
  // [batch, seqlen, num_heads, head_dim]; 8 query heads share 2 key heads.
  std::vector<float> q(2 * 256 * 8 * 64, 0.1f), k(2 * 256 * 2 * 64, 0.2f), v(k.size(), 0.3f);
  const TensorView q_view = view_of(q.data(), {2, 256, 8, 64});
  const TensorView k_view = view_of(k.data(), {2, 256, 2, 64});
  const TensorView v_view = view_of(v.data(), {2, 256, 2, 64});

  const AttentionOptions options{.causal = true};
  const AttentionResult result = flash_attn_func(q_view, k_view, v_view, options);
  const AttentionGradients gradients =
      flash_attn_backward(/*dout=*/result.out, q_view, k_view, v_view, result, options);

  std::printf("out %s, first value %.3f\n", to_string(result.out.shape()).c_str(),
              static_cast<double>(result.out.as<float>()[0]));
  std::printf("dq %s, dk %s\n", to_string(gradients.dq.shape()).c_str(),
              to_string(gradients.dk.shape()).c_str());
}
