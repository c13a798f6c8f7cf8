// The operations that a transformer needs around attention, on tensors that the caller owns.
//
// Rules that hold for every function here:
//   - All tensors of a call live on one device; the call is served by that device's backend. A
//     backend that the library was built without gives Error(unsupported).
//   - Outputs are written, never allocated. Outputs named gradient or d<weight> are float32 and are
//     added to; everything else is overwritten. An output may be the same view as an input only
//     where that is said.
//   - "floating" means float32, bfloat16 or float16; different tensors of a call may differ. All
//     arithmetic is float32, rounded once on the way out.
//   - Views may have any strides, the last dimension stride 1 (matmul: any).
//   - On a CPU, results are the same bits for every number of threads; on a GPU, the same every
//     time.
//   - On a GPU, calls are queued on the stream and nothing is read back. So indices ("checked"
//     means on a CPU) are not checked there: a wrong one gives NaN in its own row of the result and
//     touches no memory outside the tensors; a wrong target makes the loss NaN.
//   - Shapes or dtypes that break a rule throw Error(invalid_argument) with the values found.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "flashmha/attention.h"
#include "flashmha/device.h"
#include "flashmha/tensor.h"

namespace flashmha::ops {

// ---- matrix product ----------------------------------------------------------------------------

struct MatmulOptions {
  float alpha = 1.0f;
  float beta = 0.0f;     // 0: c is not read, so it may hold anything, NaN included
  TensorView bias = {};  // floating [n], added to every row; or not given
};

// c = alpha * a b + beta * c + bias.
// a [..., m, k], b [..., k, n], c [..., m, n], floating, any strides: a transposed operand is a
// transposed view. c gives the leading dimensions; those of a and b broadcast to them. k = 0 gives
// beta * c + bias.
void matmul(const TensorView& a, const TensorView& b, const TensorView& c,
            const MatmulOptions& options = {}, Stream stream = {});

// gradient[j] += sum over rows of dout[..., j]; dout floating [..., n], gradient float32 [n].
void bias_gradient(const TensorView& dout, const TensorView& gradient, Stream stream = {});

// ---- normalisation and activation --------------------------------------------------------------

struct RMSNormOptions {
  float eps = 1e-6f;
  float weight_offset = 0.0f;  // added to the weights in float32; 1 in Gemma, whose weights are
                               // stored as differences from 1
  bool operator==(const RMSNormOptions&) const = default;
};

// y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset) over the last dimension (Zhang &
// Sennrich 2019, "RMSNorm"). x, y floating [..., n]; weight floating [n]; rstd float32 [...] or not
// given: 1 / sqrt(...), which the backward needs. y may be x.
void rms_norm(const TensorView& x, const TensorView& weight, const RMSNormOptions& options,
              const TensorView& y, const TensorView& rstd = {}, Stream stream = {});

// dy, x, dx [..., n]; rstd [...] from the forward; dx may be dy. dweight float32 [n], added to; or
// not given. Of the options, eps is not read: it is in rstd.
void rms_norm_backward(const TensorView& dy, const TensorView& x, const TensorView& weight,
                       const RMSNormOptions& options, const TensorView& rstd, const TensorView& dx,
                       const TensorView& dweight, Stream stream = {});

enum class Activation : std::uint8_t {
  silu,       // x / (1 + exp(-x))
  gelu_tanh,  // x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016)
};

// out = activation(gate) * up (Shazeer 2020, "GLU variants": SwiGLU and GeGLU). All floating, equal
// shapes; out may be gate or up.
void glu(Activation activation, const TensorView& gate, const TensorView& up, const TensorView& out,
         Stream stream = {});

// Gradients of glu; dgate may be gate, dup may be up or dout.
void glu_backward(Activation activation, const TensorView& dout, const TensorView& gate,
                  const TensorView& up, const TensorView& dgate, const TensorView& dup,
                  Stream stream = {});

// y = cap * tanh(x / cap), cap > 0; floating, equal shapes; y may be x.
void softcap(const TensorView& x, float cap, const TensorView& y, Stream stream = {});

// dx = dy * (1 - tanh(x / cap)^2); dx may be dy or x.
void softcap_backward(const TensorView& dy, const TensorView& x, float cap, const TensorView& dx,
                      Stream stream = {});

// out = a + b. Equal shapes, floating; out may be a or b.
void add(const TensorView& a, const TensorView& b, const TensorView& out, Stream stream = {});

// ---- rotary embedding --------------------------------------------------------------------------

struct RotaryTables {
  TensorView cos = {};       // float32 [num_positions, rotary_dim / 2], attention scaling included
  TensorView sin = {};       // same
  bool interleaved = false;  // true: pairs (2i, 2i+1); false: pairs (i, i + rotary_dim / 2)
};

// Rotates the first rotary_dim elements of every head; the rest is copied (Su et al. 2021).
// x, y floating [batch, seqlen, num_heads, head_dim] with positions int32 [batch, seqlen], or
// [total, num_heads, head_dim] with positions int32 [total]. Positions are rows of the tables and
// are checked against them. y may be x.
void rotary(const TensorView& x, const RotaryTables& tables, const TensorView& positions,
            const TensorView& y, Stream stream = {});

// Gradient of rotary: the transposed rotation. dx may be dy.
void rotary_backward(const TensorView& dy, const RotaryTables& tables, const TensorView& positions,
                     const TensorView& dx, Stream stream = {});

// ---- materialised attention: the pieces of the plain baseline ----------------------------------

// Which scores of a materialised matrix [batch, num_heads, seqlen_q, seqlen_k] take part, and how.
struct SoftmaxOptions {
  float softcap = 0.0f;            // > 0: softcap * tanh(score / softcap), before masking
  std::int64_t window_left = -1;   // row i sees columns [i + shift - left, i + shift + right];
  std::int64_t window_right = -1;  // -1 = unbounded; causal: right = 0
  std::int64_t shift = 0;          // seqlen_k - seqlen_q: the last query sees the last key
  TensorView mask = {};   // boolean, broadcastable to the scores, true = may be seen; or not given
  TensorView sinks = {};  // floating [num_heads]: a logit more in the denominator; or not given
};

// probabilities = softmax of the masked scores over the last dimension; 0 where masked, and
// everywhere in a row that sees nothing. Both floating, equal shapes; may be the same view. lse
// float32 [batch, num_heads, seqlen_q] or not given: natural log of the denominator, sink included.
void softmax(const TensorView& scores, const SoftmaxOptions& options,
             const TensorView& probabilities, const TensorView& lse = {}, Stream stream = {});

// What the backward of softmax reads.
struct SoftmaxSaved {
  TensorView probabilities = {};
  TensorView scores = {};  // the forward's input; needed with softcap only
  TensorView lse = {};     // needed for dsinks only
};

// dscores = p * (dp - sum(p * dp)), times the derivative of the softcap. dscores may be
// dprobabilities. dsinks float32 [num_heads], added to; or not given.
void softmax_backward(const TensorView& dprobabilities, const SoftmaxSaved& saved,
                      const SoftmaxOptions& options, const TensorView& dscores,
                      const TensorView& dsinks = {}, Stream stream = {});

// y = x / (1 - p) where kept, else 0; x, y floating [batch, num_heads, seqlen_q, seqlen_k]. Keeps
// the elements that attention with the same Dropout keeps. Its own gradient. y may be x.
void attention_dropout(const TensorView& x, const Dropout& dropout, const TensorView& y,
                       Stream stream = {});

// ---- rows --------------------------------------------------------------------------------------

// The index of no row: gathering gives zeros for it, scattering leaves it out.
inline constexpr std::int64_t kNoRow = -1;

// y[i] = x[indices[i]]. x [rows, ...], y [n, ...] of one dtype, contiguous rows; indices int64 [n],
// checked.
void gather_rows(const TensorView& x, const TensorView& indices, const TensorView& y,
                 Stream stream = {});

// y[indices[i]] = x[i], all other rows of y become 0. The indices must differ.
void scatter_rows(const TensorView& x, const TensorView& indices, const TensorView& y,
                  Stream stream = {});

// Where the real tokens of a padded batch are. mask [batch, seqlen] boolean, int32 or int64, any
// strides, non-zero = real; reserved the same or not given: tokens that keep their place although
// they are not real (checked: not in the mask, too). indices int64 [n]: the kept tokens of the
// flattened [batch * seqlen], rising, and kNoRow behind the last one; tokens beyond the n-th are
// left out. cu_seqlens int32 [batch + 1]: where each row's kept tokens begin among them. seqused
// int32 [batch] or not given: how many tokens of a row are real.
void unpad(const TensorView& mask, const TensorView& reserved, const TensorView& indices,
           const TensorView& cu_seqlens, const TensorView& seqused = {}, Stream stream = {});

// out[...] = scale * table[ids[...]]. table floating [vocabulary, hidden]; ids int32 or int64; out
// floating [ids' shape..., hidden]. Ids outside the table are refused.
void embedding(const TensorView& table, const TensorView& ids, const TensorView& out,
               float scale = 1.0f, Stream stream = {});

// dtable[ids[...]] += scale * dout[...]; dtable float32 [vocabulary, hidden].
void embedding_backward(const TensorView& dout, const TensorView& ids, const TensorView& dtable,
                        float scale = 1.0f, Stream stream = {});

// Index of the largest element of every row, the first of equals; NaN counts as largest. x floating
// [..., n], out int32 [...]; largest float32 [...] or not given: the elements themselves.
void argmax(const TensorView& x, const TensorView& out, const TensorView& largest = {},
            Stream stream = {});

// ---- choosing tokens ---------------------------------------------------------------------------

// Scores of the tokens of a row that were seen become score / penalty if positive, else score *
// penalty. scores float32 [rows, vocabulary], contiguous; seen int32 [rows, n], contiguous: token
// ids that differ within a row, others than [0, vocabulary) count for nothing; penalty > 0.
void penalise(const TensorView& scores, const TensorView& seen, float penalty, Stream stream = {});

// The filters of flashmha/sampling.h, in its order.
struct SampleOptions {
  double temperature = 1.0;  // above 0
  std::int64_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
};

// Draws a token for every row. scores float32 [rows, vocabulary], contiguous; uniforms float64
// [rows] in [0, 1): the place in the sum of what the filters leave, tokens in their order. out
// int32 [rows]: -1 for a row that has NaN or +inf, or nothing but -inf. weights float64 [rows,
// vocabulary] or not given: what was drawn from, probabilities relative to that of the most likely
// token, 0 where filtered.
void sample(const TensorView& scores, const SampleOptions& options, const TensorView& uniforms,
            const TensorView& out, const TensorView& weights = {}, Stream stream = {});

// ---- loss and optimiser ------------------------------------------------------------------------

// Mean of lse(logits[i]) - logits[i, targets[i]] over the rows whose target is not ignore_index (0
// if there is none). logits floating [rows, vocabulary]; targets int32 or int64 [rows], others are
// checked against the vocabulary; loss float32 [2]: the mean and the number of rows counted; lse
// float32 [rows], for the backward.
void cross_entropy(const TensorView& logits, const TensorView& targets, std::int64_t ignore_index,
                   const TensorView& loss, const TensorView& lse, Stream stream = {});

struct CrossEntropySaved {
  TensorView targets = {};
  TensorView lse = {};   // float32 [rows]
  TensorView loss = {};  // float32 [2]
  std::int64_t ignore_index = -100;
  TensorView scale = {};  // float32 [1]: factor of the gradient; not given: 1
};

// dlogits = scale * (softmax(logits) - onehot) / rows counted; ignored rows 0. dlogits may be
// logits, so that no second copy of the logits ever exists.
void cross_entropy_backward(const TensorView& logits, const CrossEntropySaved& saved,
                            const TensorView& dlogits, Stream stream = {});

// norm[0] = sqrt of the sum of squares of all elements of all tensors (float32, any shapes); norm
// float32 [1].
void gradient_norm(std::span<const TensorView> gradients, const TensorView& norm,
                   Stream stream = {});

struct AdamWOptions {
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float eps = 1e-8f;
  float weight_decay = 0.01f;  // decoupled: parameter -= learning_rate * weight_decay * parameter
  // > 0: gradients are scaled by min(1, max_gradient_norm / (gradient_norm + 1e-6)).
  float max_gradient_norm = 0.0f;
};

// What is different in every step. In tensors, so that a recorded step can be done again.
struct AdamWStep {
  // float32 [3]: learning rate, 1 / (1 - beta1^step), 1 / (1 - beta2^step); see adamw_schedule.
  TensorView schedule = {};
  // float32 [1], from gradient_norm(); if it is not finite, nothing is changed. Not given:
  // gradients are taken as they are, and max_gradient_norm must be 0.
  TensorView gradient_norm = {};
};

// The values of AdamWStep::schedule for a step, which counts from 1.
std::array<float, 3> adamw_schedule(const AdamWOptions& options, float learning_rate,
                                    std::int64_t step);

// The state of one parameter; equal shapes, contiguous.
struct AdamWState {
  TensorView parameter = {};  // floating
  TensorView gradient = {};   // float32; zeros after the step
  TensorView moment1 = {};    // float32, zeros before the first step
  TensorView moment2 = {};    // float32, zeros before the first step
  TensorView master = {};  // float32 copy that is updated and rounded into a 16-bit parameter; must
                           // be given for those, must not for float32
};

// One step of AdamW (Loshchilov & Hutter 2019, "Decoupled weight decay regularization") for many
// parameters, which on a GPU take few launches together.
void adamw(std::span<const AdamWState> states, const AdamWStep& step, const AdamWOptions& options,
           Stream stream = {});
inline void adamw(const AdamWState& state, const AdamWStep& step, const AdamWOptions& options,
                  Stream stream = {}) {
  adamw(std::span(&state, 1), step, options, stream);
}

}  // namespace flashmha::ops
