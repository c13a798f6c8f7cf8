// The operations of ops.h on a CPU; signatures and rules are stated there.
#pragma once

#include "ops/table.h"

namespace flashmha::cpu::ops {

using namespace flashmha::ops;  // the option structs

void matmul(const TensorView& a, const TensorView& b, const TensorView& c,
            const MatmulOptions& options, Stream);
void bias_gradient(const TensorView& dout, const TensorView& gradient, Stream);
void rms_norm(const TensorView& x, const TensorView& weight, const RMSNormOptions& options,
              const TensorView& y, const TensorView& rstd, Stream);
void rms_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& weight,
                       const RMSNormOptions& options, const TensorView& rstd, const TensorView& dx,
                       const TensorView& dweight, Stream);
void glu(Activation activation, const TensorView& gate, const TensorView& up, const TensorView& out,
         Stream);
void glu_backward(Activation activation, const TensorView& dout, const TensorView& gate,
                  const TensorView& up, const TensorView& dgate, const TensorView& dup, Stream);
void softcap(const TensorView& x, float cap, const TensorView& y, Stream);
void softcap_backward(const TensorView& dy, const TensorView& x, float cap, const TensorView& dx,
                      Stream);
void add(const TensorView& a, const TensorView& b, const TensorView& out, Stream);
void rotary(const TensorView& x, const RotaryTables& tables, const TensorView& positions,
            const TensorView& y, Stream);
void rotary_backward(const TensorView& dy, const RotaryTables& tables, const TensorView& positions,
                     const TensorView& dx, Stream);
void softmax(const TensorView& scores, const SoftmaxOptions& options,
             const TensorView& probabilities, const TensorView& lse, Stream);
void softmax_backward(const TensorView& dprobabilities, const SoftmaxSaved& saved,
                      const SoftmaxOptions& options, const TensorView& dscores,
                      const TensorView& dsinks, Stream);
void attention_dropout(const TensorView& x, const Dropout& dropout, const TensorView& y, Stream);
void gather_rows(const TensorView& x, const TensorView& indices, const TensorView& y, Stream);
void scatter_rows(const TensorView& x, const TensorView& indices, const TensorView& y, Stream);
void unpad(const TensorView& mask, const TensorView& reserved, const TensorView& indices,
           const TensorView& cu_seqlens, const TensorView& seqused, Stream);
void embedding(const TensorView& table, const TensorView& ids, const TensorView& out, float scale,
               Stream);
void embedding_backward(const TensorView& dout, const TensorView& ids, const TensorView& dtable,
                        float scale, Stream);
void argmax(const TensorView& x, const TensorView& out, const TensorView& largest, Stream);
void penalise(const TensorView& scores, const TensorView& seen, float penalty, Stream);
void sample(const TensorView& scores, const SampleOptions& options, const TensorView& uniforms,
            const TensorView& out, const TensorView& weights, Stream);
void cross_entropy(const TensorView& logits, const TensorView& targets, std::int64_t ignore_index,
                   const TensorView& loss, const TensorView& lse, Stream);
void cross_entropy_backward(const TensorView& logits, const CrossEntropySaved& saved,
                            const TensorView& dlogits, Stream);
void gradient_norm(std::span<const TensorView> gradients, const TensorView& norm, Stream);
void adamw(std::span<const AdamWState> states, const AdamWStep& step, const AdamWOptions& options,
           Stream);

}  // namespace flashmha::cpu::ops
