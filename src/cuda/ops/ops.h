// The operations of ops.h on a GPU; signatures and rules are stated there. Calls queue kernels and
// return: nothing is read back, so indices are not checked here. What a wrong one leads to is NaN
// in its own row (argmax and the like have none), never memory that is not the tensor's.
#pragma once

#include "ops/table.h"

namespace flashmha::cuda::ops {

using namespace flashmha::ops;  // the option structs

void matmul(const TensorView& a, const TensorView& b, const TensorView& c,
            const MatmulOptions& options, Stream stream);
void bias_gradient(const TensorView& dout, const TensorView& gradient, Stream stream);
void rms_norm(const TensorView& x, const TensorView& weight, const RMSNormOptions& options,
              const TensorView& y, const TensorView& rstd, Stream stream);
void rms_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& weight,
                       const RMSNormOptions& options, const TensorView& rstd, const TensorView& dx,
                       const TensorView& dweight, Stream stream);
void glu(Activation activation, const TensorView& gate, const TensorView& up, const TensorView& out,
         Stream stream);
void glu_backward(Activation activation, const TensorView& dout, const TensorView& gate,
                  const TensorView& up, const TensorView& dgate, const TensorView& dup,
                  Stream stream);
void softcap(const TensorView& x, float cap, const TensorView& y, Stream stream);
void softcap_backward(const TensorView& dy, const TensorView& x, float cap, const TensorView& dx,
                      Stream stream);
void add(const TensorView& a, const TensorView& b, const TensorView& out, Stream stream);
void rotary(const TensorView& x, const RotaryTables& tables, const TensorView& positions,
            const TensorView& y, Stream stream);
void rotary_backward(const TensorView& dy, const RotaryTables& tables, const TensorView& positions,
                     const TensorView& dx, Stream stream);
void softmax(const TensorView& scores, const SoftmaxOptions& options,
             const TensorView& probabilities, const TensorView& lse, Stream stream);
void softmax_backward(const TensorView& dprobabilities, const SoftmaxSaved& saved,
                      const SoftmaxOptions& options, const TensorView& dscores,
                      const TensorView& dsinks, Stream stream);
void attention_dropout(const TensorView& x, const Dropout& dropout, const TensorView& y,
                       Stream stream);
void gather_rows(const TensorView& x, const TensorView& indices, const TensorView& y,
                 Stream stream);
void scatter_rows(const TensorView& x, const TensorView& indices, const TensorView& y,
                  Stream stream);
void unpad(const TensorView& mask, const TensorView& reserved, const TensorView& indices,
           const TensorView& cu_seqlens, const TensorView& seqused, Stream stream);
void embedding(const TensorView& table, const TensorView& ids, const TensorView& out, float scale,
               Stream stream);
void embedding_backward(const TensorView& dout, const TensorView& ids, const TensorView& dtable,
                        float scale, Stream stream);
void argmax(const TensorView& x, const TensorView& out, const TensorView& largest, Stream stream);
void penalise(const TensorView& scores, const TensorView& seen, float penalty, Stream stream);
void sample(const TensorView& scores, const SampleOptions& options, const TensorView& uniforms,
            const TensorView& out, const TensorView& weights, Stream stream);
void cross_entropy(const TensorView& logits, const TensorView& targets, std::int64_t ignore_index,
                   const TensorView& loss, const TensorView& lse, Stream stream);
void cross_entropy_backward(const TensorView& logits, const CrossEntropySaved& saved,
                            const TensorView& dlogits, Stream stream);
void gradient_norm(std::span<const TensorView> gradients, const TensorView& norm, Stream stream);
void adamw(std::span<const AdamWState> states, const AdamWStep& step, const AdamWOptions& options,
           Stream stream);

// c = product + beta * c + bias, rounded once: the last step of a product that cuBLASLt cannot
// write into c. product float32, of c's shape.
void finish_product(const TensorView& product, const TensorView& c, const MatmulOptions& options,
                    Stream stream);

}  // namespace flashmha::cuda::ops
