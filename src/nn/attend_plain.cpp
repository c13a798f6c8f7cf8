// Step four of MultiHeadAttention: materialised scores. Padding and packed sequences become one
// boolean matrix, so that the layer means what the flash layer means.
#include <algorithm>

#include "flashmha/mha.h"
#include "nn/host.h"

namespace flashmha::nn {
namespace {

// A sequence's tokens inside a row of the batch: which slots of queries and keys are real.
struct RowTokens {
  std::vector<std::int64_t> queries;
  std::vector<std::int64_t> keys;
};

// seen[i * seqlen_k + j] for the real tokens of one sequence; the band counts real tokens.
void allow(const RowTokens& tokens, const AttentionOptions& options, std::int64_t seqlen_k,
           bool* seen) {
  const auto num_queries = static_cast<std::int64_t>(tokens.queries.size());
  const auto num_keys = static_cast<std::int64_t>(tokens.keys.size());
  const std::int64_t right = options.causal ? 0 : options.window_right;
  for (std::int64_t i = 0; i < num_queries; ++i) {
    const std::int64_t center = i + num_keys - num_queries;
    const std::int64_t begin = options.window_left < 0 ? 0 : center - options.window_left;
    const std::int64_t end = right < 0 ? num_keys : center + right + 1;
    for (std::int64_t j = std::max<std::int64_t>(0, begin); j < std::min(end, num_keys); ++j) {
      seen[tokens.queries[static_cast<std::size_t>(i)] * seqlen_k +
           tokens.keys[static_cast<std::size_t>(j)]] = true;
    }
  }
}

std::vector<std::int64_t> real_slots(const std::vector<std::int64_t>& mask, std::int64_t from,
                                     std::int64_t count) {
  std::vector<std::int64_t> slots;
  for (std::int64_t i = 0; i < count; ++i) {
    if (mask[static_cast<std::size_t>(from + i)] != 0) slots.push_back(i);
  }
  return slots;
}

std::vector<std::int64_t> all_slots(std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> slots;
  for (std::int64_t i = begin; i < end; ++i)
    slots.push_back(i);
  return slots;
}

// boolean [batch, 1, seqlen_q, seqlen_k] of a padding mask; the rules are FlashAttentionMixin's.
Tensor padding_matrix(const AttentionInputs& inputs, const AttentionOptions& options,
                      std::int64_t seqlen_q, std::int64_t seqlen_k) {
  const TensorView& mask = inputs.attention_mask;
  const std::vector<std::int64_t> real = host_matrix("MultiHeadAttention", "attention_mask", mask);
  const std::int64_t batch = mask.size(0);
  const std::int64_t columns = std::min(mask.size(1), seqlen_k);
  const bool all_queries = inputs.encoder_states.defined() || (seqlen_q == 1 && columns != 1);
  check(all_queries || seqlen_q <= columns,
        "[MultiHeadAttention] there must not be more queries ({}) than the mask and the keys have "
        "columns ({})",
        seqlen_q, columns);
  Tensor matrix = Tensor::zeros({batch, 1, seqlen_q, seqlen_k}, DType::boolean);
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t row_end = (b + 1) * mask.size(1);
    RowTokens tokens;
    tokens.keys = real_slots(real, row_end - columns, columns);
    tokens.queries =
        all_queries ? all_slots(0, seqlen_q) : real_slots(real, row_end - seqlen_q, seqlen_q);
    allow(tokens, options, seqlen_k, matrix.as<bool>() + b * seqlen_q * seqlen_k);
  }
  return matrix;
}

// boolean [1, 1, total, total].
Tensor packed_matrix(const PackedSequences& packed, const AttentionOptions& options,
                     std::int64_t total) {
  Tensor matrix = Tensor::zeros({1, 1, total, total}, DType::boolean);
  const Located cu_seqlens(packed.cu_seqlens);
  const auto* starts = cu_seqlens.as<std::int32_t>();
  for (std::int64_t s = 0; s + 1 < packed.cu_seqlens.size(0); ++s) {
    const std::vector<std::int64_t> slots = all_slots(starts[s], starts[s + 1]);
    allow({slots, slots}, options, total, matrix.as<bool>());
  }
  return matrix;
}

// What the plain functions are called with. Packed batches become one row.
struct PlainCall {
  TensorView q, k, v;
  AttentionOptions options;
  Tensor mask;
};

TensorView one_row(const TensorView& x) {
  return x.reshape({1, x.size(0) * x.size(1), x.size(2), x.size(3)});
}

PlainCall plain_call(const TensorView& q, const TensorView& k, const TensorView& v,
                     const AttentionInputs& inputs, const AttentionOptions& options) {
  PlainCall call{.q = q, .k = k, .v = v, .options = options, .mask = {}};
  if (inputs.packed) {
    call.q = one_row(q);
    call.k = one_row(k);
    call.v = one_row(v);
    call.mask = packed_matrix(*inputs.packed, options, call.q.size(1));
  } else if (inputs.attention_mask.defined()) {
    call.mask = padding_matrix(inputs, options, q.size(1), k.size(1));
  }
  if (call.mask.defined()) {
    if (q.device.type != DeviceType::cpu) call.mask = to_device(call.mask, q.device);
    call.options.mask = call.mask;
    call.options.causal = false;
    call.options.window_left = -1;
    call.options.window_right = -1;
  }
  return call;
}

}  // namespace

TensorView MultiHeadAttention::attend(const TensorView& q, const CachedKeys& keys,
                                      const AttentionInputs& inputs, AttentionSaved& saved) const {
  const OrderedKeys ordered = in_order(keys);
  const PlainCall call = plain_call(q, ordered.k, ordered.v, inputs, attention_options(inputs));
  saved.plain = plain_attention(call.q, call.k, call.v, call.options);
  return saved.plain.out.view().reshape({q.size(0), q.size(1), q.size(2), keys.v.size(-1)});
}

AttentionGradients MultiHeadAttention::attend_backward(const TensorView& dout,
                                                       const AttentionInputs& inputs,
                                                       const AttentionSaved& saved) const {
  const PlainCall call = plain_call(saved.q, saved.k, saved.v, inputs, attention_options(inputs));
  AttentionGradients gradients = plain_attention_backward(
      dout.reshape(saved.plain.out.shape()), call.q, call.k, call.v, saved.plain, call.options);
  gradients.dq = reshaped(std::move(gradients.dq), saved.q.shape());
  gradients.dk = reshaped(std::move(gradients.dk), saved.k.shape());
  gradients.dv = reshaped(std::move(gradients.dv), saved.v.shape());
  return gradients;
}

}  // namespace flashmha::nn
