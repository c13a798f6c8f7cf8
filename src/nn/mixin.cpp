// FlashAttentionMixin: attention on padded, packed or dense batches.
#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "flashmha/ops.h"
#include "flashmha/padding.h"
#include "nn/host.h"

namespace flashmha {
namespace {

bool all_ones(const TensorView& mask) {
  const std::vector<std::int64_t> values = host_matrix("FlashAttentionMixin", "mask", mask);
  return std::none_of(values.begin(), values.end(), [](std::int64_t value) { return value == 0; });
}

// The mask of the keys, and k and v without keys beyond it.
struct MaskedKeys {
  TensorView mask, k, v;
};

MaskedKeys align_mask(const TensorView& mask, const TensorView& k, const TensorView& v) {
  check(mask.rank() == 2 && k.rank() == 4 && v.rank() == 4 && mask.size(0) == k.size(0) &&
            v.size(0) == k.size(0) && v.size(1) == k.size(1),
        "[FlashAttentionMixin] mask must be [batch,seqlen_k], k and v [batch,seqlen_k,num_heads_kv,"
        "head_dim]; got mask {}, k {}, v {}",
        mask, k, v);
  const std::int64_t length = std::min(mask.size(1), k.size(1));
  return {mask.slice(1, mask.size(1) - length, mask.size(1)), k.slice(1, 0, length),
          v.slice(1, 0, length)};
}

// With what kernels read on their device.
UnpadData moved(UnpadData data, Device device) {
  if (data.indices.device() != device) data.indices = to_device(data.indices, device);
  if (data.cu_seqlens.device() != device) data.cu_seqlens = to_device(data.cu_seqlens, device);
  return data;
}

UnpadData all_rows(std::int64_t batch, std::int64_t seqlen, Device device) {
  const Tensor ones = Tensor::empty({batch, seqlen}, DType::boolean, device);
  fill(ones, 1.0);
  return get_unpad_data(ones, {}, UnpadBound{.total = batch * seqlen, .max_seqlen = seqlen});
}

UnpadData query_rows(const TensorView& q, const TensorView& mask,
                     FlashAttentionMixin::Queries queries, const std::optional<UnpadBound>& bound) {
  const std::int64_t batch = q.size(0);
  const std::int64_t seqlen_q = q.size(1);
  const bool all_real = queries == FlashAttentionMixin::Queries::all;
  if (all_real || (seqlen_q == 1 && mask.size(1) != 1)) {
    return all_rows(batch, seqlen_q, mask.device);
  }
  check(seqlen_q <= mask.size(1),
        "[FlashAttentionMixin] there must not be more queries than the mask and the keys have "
        "columns ({}); got q {}",
        mask.size(1), q);
  return get_unpad_data(mask.slice(1, mask.size(1) - seqlen_q, mask.size(1)), {}, bound);
}

// FLASHMHA_DETERMINISTIC=1 asks for the deterministic backward where the argument does not.
AttentionOptions with_environment(AttentionOptions options) {
  const char* value = std::getenv("FLASHMHA_DETERMINISTIC");
  options.deterministic |= value != nullptr && std::string_view(value) == "1";
  return options;
}

std::int64_t longest(const TensorView& cu_seqlens) {
  const Located host(cu_seqlens);
  const auto* starts = host.as<std::int32_t>();
  std::int64_t length = 0;
  for (std::int64_t i = 0; i + 1 < cu_seqlens.size(0); ++i) {
    length = std::max<std::int64_t>(length, starts[i + 1] - starts[i]);
  }
  return length;
}

Sequences make_sequences(const TensorView& cu_seqlens_q, std::int64_t max_seqlen_q,
                         const TensorView& cu_seqlens_k, std::int64_t max_seqlen_k) {
  Sequences sequences;
  sequences.cu_seqlens_q = cu_seqlens_q;
  sequences.cu_seqlens_k = cu_seqlens_k;
  sequences.max_seqlen_q = max_seqlen_q;
  sequences.max_seqlen_k = max_seqlen_k;
  return sequences;
}

// The sequences of a packed batch, on a device.
class PackedLengths {
 public:
  PackedLengths(const PackedSequences& packed, Device device)
      : cu_seqlens_(packed.cu_seqlens, device) {
    check(packed.cu_seqlens.defined(), "[FlashAttentionMixin] packed.cu_seqlens must be given");
    length_ = packed.max_seqlen > 0 ? packed.max_seqlen : longest(packed.cu_seqlens);
  }

  Sequences sequences() const { return make_sequences(cu_seqlens_, length_, cu_seqlens_, length_); }

 private:
  Located cu_seqlens_;
  std::int64_t length_ = 0;
};

// [batch, seqlen, heads, dim] -> [batch * seqlen, heads, dim].
TensorView flatten(const TensorView& x) {
  TensorView flat = x;
  flat.shape = {x.size(0) * x.size(1), x.size(2), x.size(3)};
  check(x.size(0) == 1 || x.stride(0) == x.size(1) * x.stride(1),
        "[FlashAttentionMixin] packed rows must be evenly spaced; got {} with strides {}", x,
        x.strides);
  flat.strides = {x.stride(1), x.stride(2), x.stride(3)};
  return flat;
}

void check_inputs(const TensorView& q, const TensorView& mask,
                  const FlashAttentionMixin::Options& options) {
  check(q.rank() == 4,
        "[FlashAttentionMixin] q must be [batch,seqlen_q,num_heads_q,head_dim]; got {}", q);
  check(!(mask.defined() && options.packed),
        "[FlashAttentionMixin] a mask and packed sequences exclude each other: cu_seqlens already "
        "say which tokens are real; got mask {}",
        mask);
}

// Puts dk or dv back where the keys were that the mask had cut off.
Tensor restore_length(Tensor gradient, std::int64_t seqlen) {
  if (gradient.size(1) == seqlen) return gradient;
  Shape shape = gradient.shape();
  shape[1] = seqlen;
  Tensor full = Tensor::zeros(shape, gradient.dtype(), gradient.device());
  copy(gradient, full.view().slice(1, 0, gradient.size(1)));
  return full;
}

}  // namespace

Sequences FlashAttentionMixin::Unpadded::sequences() const {
  return make_sequences(queries.cu_seqlens, queries.max_seqlen, keys.cu_seqlens, keys.max_seqlen);
}

TensorView FlashAttentionMixin::Result::out() const {
  const TensorView& result = padded_out.defined() ? padded_out : attention.out;
  return result.reshape(out_shape);
}

FlashAttentionMixin::Unpadded FlashAttentionMixin::upad_input(
    const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& mask,
    Queries queries, const std::optional<UnpadBound>& bound) {
  check_inputs(q, {}, {});
  const MaskedKeys keys = align_mask(mask, k, v);
  check(q.size(0) == k.size(0), "[FlashAttentionMixin] q and k must have one batch; got {} and {}",
        q, k);
  Unpadded result;
  result.queries = moved(query_rows(q, keys.mask, queries, bound), q.device);
  result.keys = moved(flashmha::get_unpad_data(keys.mask, {}, bound), q.device);
  result.q = unpad_input(q, result.queries);
  result.k = unpad_input(keys.k, result.keys);
  result.v = unpad_input(keys.v, result.keys);
  return result;
}

FlashAttentionMixin::Result FlashAttentionMixin::forward(const TensorView& q, const TensorView& k,
                                                         const TensorView& v,
                                                         const TensorView& mask,
                                                         const Options& options) {
  check_inputs(q, mask, options);
  const AttentionOptions attention = with_environment(options.attention);
  Result result;
  result.out_shape = {q.size(0), q.size(1), q.size(2), v.size(-1)};
  result.seqlen_k = k.size(1);
  if (options.packed) {
    const PackedLengths lengths(*options.packed, q.device);
    result.attention =
        flash_attn_varlen_func(flatten(q), flatten(k), flatten(v), lengths.sequences(), attention);
    return result;
  }
  if (!mask.defined()) {
    result.attention = flash_attn_func(q, k, v, attention);
    return result;
  }
  const MaskedKeys keys = align_mask(mask, k, v);
  result.seqlen_k = keys.k.size(1);
  if (!options.bound && all_ones(keys.mask)) {
    result.attention = flash_attn_func(q, keys.k, keys.v, attention);
    return result;
  }
  check(!attention.bias.defined() && !attention.mask.defined(),
        "[FlashAttentionMixin] a padding mask cannot be combined with options.bias or "
        "options.mask: put the padding into options.mask and call flash_attn_func; got mask {}, "
        "bias {}, options.mask {}",
        mask, attention.bias, attention.mask);
  result.unpadded = upad_input(q, k, v, mask, options.queries, options.bound);
  const Unpadded& packed = *result.unpadded;
  result.attention =
      flash_attn_varlen_func(packed.q, packed.k, packed.v, packed.sequences(), attention);
  result.padded_out = pad_input(result.attention.out, packed.queries);
  return result;
}

FlashAttentionMixin::Gradients FlashAttentionMixin::backward(
    const TensorView& dout, const TensorView& q, const TensorView& k, const TensorView& v,
    const Result& result, const Options& options) {
  check(dout.shape == result.out_shape,
        "[FlashAttentionMixin] dout must have out's shape {}; got {}", result.out_shape, dout);
  const AttentionOptions attention = with_environment(options.attention);
  if (options.packed) {
    const PackedLengths lengths(*options.packed, q.device);
    Gradients gradients =
        flash_attn_varlen_backward(flatten(dout), flatten(q), flatten(k), flatten(v),
                                   result.attention, lengths.sequences(), attention);
    gradients.dq = reshaped(std::move(gradients.dq), q.shape);
    gradients.dk = reshaped(std::move(gradients.dk), k.shape);
    gradients.dv = reshaped(std::move(gradients.dv), v.shape);
    return gradients;
  }
  if (!result.unpadded) {
    const std::int64_t used = result.seqlen_k;
    Gradients gradients = flash_attn_backward(dout, q, k.slice(1, 0, used), v.slice(1, 0, used),
                                              result.attention, attention);
    gradients.dk = restore_length(std::move(gradients.dk), k.size(1));
    gradients.dv = restore_length(std::move(gradients.dv), v.size(1));
    return gradients;
  }
  const Unpadded& packed = *result.unpadded;
  const Tensor dout_packed = pad_input_backward(dout, packed.queries);
  Gradients gradients = flash_attn_varlen_backward(dout_packed, packed.q, packed.k, packed.v,
                                                   result.attention, packed.sequences(), attention);
  gradients.dq = unpad_input_backward(gradients.dq, packed.queries);
  gradients.dk = restore_length(unpad_input_backward(gradients.dk, packed.keys), k.size(1));
  gradients.dv = restore_length(unpad_input_backward(gradients.dv, packed.keys), v.size(1));
  return gradients;
}

}  // namespace flashmha
