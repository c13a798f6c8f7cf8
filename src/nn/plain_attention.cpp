// Attention as three steps over a matrix of scores in memory. Heads are never moved: the products
// read and write [batch, seqlen, num_heads, head_dim] through strides, and a group of query heads
// shares its key head through a stride of 0.
#include "flashmha/plain_attention.h"

#include <cmath>

#include "core/check.h"
#include "core/format.h"
#include "flashmha/ops.h"

namespace flashmha::nn {
namespace {

struct Sizes {
  std::int64_t batch, seqlen_q, seqlen_k, num_heads, num_heads_kv, group;
};

Sizes check_call(std::string_view function, const TensorView& q, const TensorView& k,
                 const TensorView& v, const AttentionOptions& options) {
  check(q.rank() == 4 && k.rank() == 4 && v.rank() == 4,
        "[{}] q, k and v must be [batch,seqlen,num_heads,head_dim]; got {}, {}, {}", function, q, k,
        v);
  check(q.size(0) == k.size(0) && k.size(0) == v.size(0) && k.size(1) == v.size(1) &&
            k.size(2) == v.size(2) && q.size(3) == k.size(3),
        "[{}] q {}, k {} and v {} do not fit together", function, q, k, v);
  check(k.size(2) > 0 && q.size(2) % k.size(2) == 0,
        "[{}] num_heads_q ({}) must be a multiple of num_heads_kv ({}); got q {}, k {}", function,
        q.size(2), k.size(2), q, k);
  check(!options.bias.defined() && !options.alibi_slopes.defined(),
        "[{}] bias and alibi_slopes are not served by the plain baseline", function);
  return {q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(2) / k.size(2)};
}

// [batch, seqlen, num_heads, dim] as [batch, num_heads_kv, group, seqlen, dim].
TensorView by_group(const TensorView& x, const Sizes& sizes) {
  TensorView view = x;
  const std::int64_t heads = x.size(2) / sizes.num_heads_kv;  // 1 for keys
  view.shape = {x.size(0), sizes.num_heads_kv, heads, x.size(1), x.size(3)};
  view.strides = {x.stride(0), heads * x.stride(2), x.stride(2), x.stride(1), x.stride(3)};
  return view;
}

// [batch, num_heads, seqlen_q, seqlen_k] as [batch, num_heads_kv, group, seqlen_q, seqlen_k].
TensorView scores_by_group(const TensorView& scores, const Sizes& sizes) {
  return scores.reshape(
      {sizes.batch, sizes.num_heads_kv, sizes.group, sizes.seqlen_q, sizes.seqlen_k});
}

Tensor empty_scores(const TensorView& q, const Sizes& sizes) {
  return Tensor::empty({sizes.batch, sizes.num_heads, sizes.seqlen_q, sizes.seqlen_k}, q.dtype,
                       q.device);
}

float scale_of(const TensorView& q, const AttentionOptions& options) {
  return options.softmax_scale.value_or(1.0f / std::sqrt(static_cast<float>(q.size(-1))));
}

ops::SoftmaxOptions softmax_options(const AttentionOptions& options, const Sizes& sizes) {
  const bool bottom_right = options.align == MaskAlign::bottom_right;
  return {.softcap = options.softcap,
          .window_left = options.window_left,
          .window_right = options.causal ? 0 : options.window_right,
          .shift = bottom_right ? sizes.seqlen_k - sizes.seqlen_q : 0,
          .mask = options.mask,
          .sinks = options.sinks};
}

// scores = softmax_scale * q k^T
void score(const TensorView& q, const TensorView& k, const Sizes& sizes, float scale,
           const TensorView& scores, Stream stream) {
  ops::matmul(by_group(q, sizes), by_group(k, sizes).transpose(-1, -2),
              scores_by_group(scores, sizes), {.alpha = scale}, stream);
}

// out [batch, seqlen_k, num_heads_kv, dim] = alpha * sum over a group's heads of matrix^T x.
// Summed in float32, because a 16-bit sum would be rounded once a head.
void add_up_group(const TensorView& matrix, const TensorView& x, const Sizes& sizes, float alpha,
                  const TensorView& out, Stream stream) {
  const bool direct = sizes.group == 1 || out.dtype == DType::float32;
  const Tensor wide = direct ? Tensor() : Tensor::empty(out.shape, DType::float32, out.device);
  const TensorView sum = direct ? out : wide.view();
  const TensorView weights = scores_by_group(matrix, sizes);
  const TensorView rows = by_group(x, sizes);
  for (std::int64_t g = 0; g < sizes.group; ++g) {
    ops::matmul(weights.select(2, g).transpose(-1, -2), rows.select(2, g),
                by_group(sum, sizes).select(2, 0), {.alpha = alpha, .beta = g > 0 ? 1.0f : 0.0f},
                stream);
  }
  if (!direct) copy(wide, out);
}

}  // namespace

PlainAttentionResult plain_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                                     const AttentionOptions& options, Stream stream) {
  const Sizes sizes = check_call("plain_attention", q, k, v, options);
  PlainAttentionResult result;
  result.out =
      Tensor::empty({sizes.batch, sizes.seqlen_q, sizes.num_heads, v.size(3)}, q.dtype, q.device);
  result.probabilities = empty_scores(q, sizes);
  result.lse =
      Tensor::empty({sizes.batch, sizes.num_heads, sizes.seqlen_q}, DType::float32, q.device);
  const TensorView matrix = result.probabilities;
  score(q, k, sizes, scale_of(q, options), matrix, stream);
  ops::softmax(matrix, softmax_options(options, sizes), matrix, result.lse, stream);

  Tensor dropped;
  if (options.dropout.p > 0.0f) {
    dropped = empty_scores(q, sizes);
    ops::attention_dropout(matrix, options.dropout, dropped, stream);
  }
  ops::matmul(scores_by_group(dropped.defined() ? dropped : matrix, sizes), by_group(v, sizes),
              by_group(result.out, sizes), {}, stream);
  return result;
}

AttentionGradients plain_attention_backward(const TensorView& dout, const TensorView& q,
                                            const TensorView& k, const TensorView& v,
                                            const PlainAttentionResult& forward,
                                            const AttentionOptions& options, Stream stream) {
  const Sizes sizes = check_call("plain_attention_backward", q, k, v, options);
  check(dout.shape == forward.out.shape(),
        "[plain_attention_backward] dout must have out's shape {}; got {}", forward.out.shape(),
        dout);
  const float scale = scale_of(q, options);
  const bool dropout = options.dropout.p > 0.0f;
  const TensorView probabilities = forward.probabilities;
  AttentionGradients gradients;
  gradients.dq = Tensor::empty(q.shape, q.dtype, q.device);
  gradients.dk = Tensor::empty(k.shape, k.dtype, k.device);
  gradients.dv = Tensor::empty(v.shape, v.dtype, v.device);
  if (options.sinks.defined()) {
    gradients.dsinks = Tensor::zeros(options.sinks.shape, DType::float32, q.device);
  }

  // dv = p^T dout, with the dropped p.
  const Tensor work = empty_scores(q, sizes);
  if (dropout) ops::attention_dropout(probabilities, options.dropout, work, stream);
  add_up_group(dropout ? work.view() : probabilities, dout, sizes, 1.0f, gradients.dv, stream);

  // dp = dout v^T, dscores from it in place.
  ops::matmul(by_group(dout, sizes), by_group(v, sizes).transpose(-1, -2),
              scores_by_group(work, sizes), {}, stream);
  if (dropout) ops::attention_dropout(work, options.dropout, work, stream);
  Tensor scores;
  if (options.softcap > 0.0f) {
    scores = empty_scores(q, sizes);
    score(q, k, sizes, scale, scores, stream);
  }
  ops::softmax_backward(work,
                        {.probabilities = probabilities, .scores = scores, .lse = forward.lse},
                        softmax_options(options, sizes), work, gradients.dsinks, stream);

  ops::matmul(scores_by_group(work, sizes), by_group(k, sizes), by_group(gradients.dq, sizes),
              {.alpha = scale}, stream);
  add_up_group(work, q, sizes, scale, gradients.dk, stream);
  return gradients;
}

}  // namespace flashmha::nn
