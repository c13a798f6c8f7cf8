// Step four of FlashMultiHeadAttention: the FlashAttention API, on padded or packed batches through
// FlashAttentionMixin, on caches in place where their keys are in one piece or in pages.
#include <algorithm>

#include "flashmha/mha.h"
#include "nn/host.h"

namespace flashmha::nn {
namespace {

// Keys and the columns of the mask that belong to them. Keys beyond a shorter mask are cut off.
struct MaskedCache {
  CachedKeys keys;
  TensorView mask;
};

MaskedCache align_mask(CachedKeys keys, const TensorView& mask) {
  if (!mask.defined()) return {keys, mask};
  keys.seqlen = std::min(keys.seqlen, mask.size(1));
  return {keys, mask.slice(1, mask.size(1) - keys.seqlen, mask.size(1))};
}

// First real key of every row if padding is on the left only (0 without a mask).
std::optional<std::vector<std::int32_t>> left_padding(const MaskedCache& cache) {
  std::vector<std::int32_t> first(
      static_cast<std::size_t>(cache.mask.defined() ? cache.mask.size(0) : 0));
  if (!cache.mask.defined()) return first;
  const std::vector<std::int64_t> real = host_matrix("FlashMultiHeadAttention", "mask", cache.mask);
  const std::int64_t length = cache.mask.size(1);
  for (std::size_t b = 0; b < first.size(); ++b) {
    const auto row = real.begin() + static_cast<std::int64_t>(b) * length;
    const auto start = std::find_if(row, row + length, [](std::int64_t value) { return value; });
    if (std::find(start, row + length, 0) != row + length) return std::nullopt;
    first[b] = static_cast<std::int32_t>(start - row);
  }
  return first;
}

// Attention in the cache's memory, without a copy of the keys.
AttentionResult attend_in_place(const TensorView& q, const CachedKeys& keys,
                                const std::vector<std::int32_t>& first,
                                const AttentionOptions& options) {
  const Tensor cache_seqlens = Tensor::empty({q.size(0)}, DType::int32, q.device);
  fill(cache_seqlens, static_cast<double>(keys.seqlen));
  const bool padded = std::any_of(first.begin(), first.end(), [](int slot) { return slot > 0; });
  const Tensor leftpad = padded ? to_device(int32_tensor(first), q.device) : Tensor();
  const Located block_table(keys.block_table, q.device);
  KVCacheView view;
  view.k = keys.k;
  view.v = keys.v;
  view.cache_seqlens = cache_seqlens;
  view.cache_leftpad = leftpad;
  view.block_table = block_table;
  return flash_attn_with_kvcache(q, view, {}, options);
}

FlashAttentionMixin::Result attend_cached(const TensorView& q, const CachedKeys& cached,
                                          const AttentionInputs& inputs, AttentionOptions options) {
  const auto [keys, mask] = align_mask(cached, inputs.attention_mask);
  const bool single = q.size(1) == 1;
  const bool wrapped = keys.first_slot != 0;
  const auto first = left_padding({keys, mask});
  const bool padded =
      !first || std::any_of(first->begin(), first->end(), [](int slot) { return slot > 0; });
  // The order of keys does not matter to a single query that sees all of them.
  const bool sees_all =
      single && (options.window_left < 0 || keys.seqlen <= options.window_left + 1);
  const bool placed =
      wrapped ? sees_all && !padded : first && (single || options.causal || !padded);
  FlashAttentionMixin::Result result;
  if (placed && (single || keys.block_table.defined())) {
    if (sees_all) {
      options.causal = false;
      options.window_left = -1;
      options.window_right = -1;
    }
    result.attention = attend_in_place(q, keys, *first, options);
    result.out_shape = result.attention.out.shape();
    return result;
  }
  const OrderedKeys ordered = in_order(keys);
  return FlashAttentionMixin::forward(q, ordered.k, ordered.v, mask, {.attention = options});
}

FlashAttentionMixin::Options mixin_options(const AttentionInputs& inputs,
                                           const AttentionOptions& attention) {
  return {.attention = attention,
          .packed = inputs.packed,
          .queries = inputs.encoder_states.defined() ? FlashAttentionMixin::Queries::all
                                                     : FlashAttentionMixin::Queries::from_mask};
}

}  // namespace

TensorView FlashMultiHeadAttention::attend(const TensorView& q, const CachedKeys& keys,
                                           const AttentionInputs& inputs,
                                           AttentionSaved& saved) const {
  check(!inputs.return_probabilities,
        "[FlashMultiHeadAttention] return_probabilities: flash attention never has them in memory; "
        "MultiHeadAttention does");
  const AttentionOptions options = attention_options(inputs);
  saved.flash = inputs.cache
                    ? attend_cached(q, keys, inputs, options)
                    : FlashAttentionMixin::forward(q, keys.k, keys.v, inputs.attention_mask,
                                                   mixin_options(inputs, options));
  return saved.flash.out();
}

TensorView FlashMultiHeadAttention::attend_decode(const AttentionInputs& inputs,
                                                  AttentionSaved& saved) const {
  const std::optional<ReservedKeys> keys = inputs.cache->reserve(1);
  check(keys.has_value(),
        "[FlashMultiHeadAttention] a decode step needs a cache that gives out its memory "
        "(DynamicKVCache, StaticKVCache) and is not empty");
  KVCacheView cache;
  cache.k = keys->k;
  cache.v = keys->v;
  cache.cache_seqlens = inputs.decode->cache_seqlens;
  cache.cache_leftpad = inputs.decode->cache_leftpad;
  AppendKV append;
  append.k = saved.k;
  append.v = saved.v;
  if (rotary) {
    const ops::RotaryTables tables = rotary->tables(inputs.num_positions);
    append.rotary = {.cos = tables.cos,
                     .sin = tables.sin,
                     .interleaved = tables.interleaved,
                     .positions = inputs.position_ids};
  }
  AttentionOptions options = attention_options(inputs);
  if (options.window_left < 0) {  // the one query sees everything
    options.causal = false;
    options.window_right = -1;
  }
  saved.flash.attention = flash_attn_with_kvcache(saved.q, cache, append, options);
  saved.flash.out_shape = saved.flash.attention.out.shape();
  return saved.flash.out();
}

AttentionGradients FlashMultiHeadAttention::attend_backward(const TensorView& dout,
                                                            const AttentionInputs& inputs,
                                                            const AttentionSaved& saved) const {
  return FlashAttentionMixin::backward(dout, saved.q, saved.k, saved.v, saved.flash,
                                       mixin_options(inputs, attention_options(inputs)));
}

}  // namespace flashmha::nn
