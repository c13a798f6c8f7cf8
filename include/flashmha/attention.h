// Attention: the FlashAttention-2 API as plain functions.
//
//   out = softmax(score) v,   score = cap(softmax_scale * q k^T) + alibi + bias, masked
//
// computed exactly, in tiles, without storing the scores (Dao 2023, "FlashAttention-2").
//
// Layouts, sizes and rules that hold for every function here:
//   q    [batch, seqlen_q, num_heads_q,  head_dim]
//   k    [batch, seqlen_k, num_heads_kv, head_dim]
//   v    [batch, seqlen_k, num_heads_kv, head_dim_v]
//   out  [batch, seqlen_q, num_heads_q,  head_dim_v]
//   lse  float32 [batch, num_heads_q, seqlen_q]: natural log of the sum of exp(score) with the sink
// dtype float32, bfloat16 or float16, the same for q, k, v, out and their gradients (float64: the
// reference backend only, with lse and its gradient in float64 too). head_dim, head_dim_v <= 256.
// num_heads_q is a multiple of num_heads_kv; query heads [g*r, (g+1)*r) share key head g.
// The last dimension has stride 1, all others are free. What is written (results, gradients, a
// cache that keys are appended to) must not overlap itself: from the smallest stride up, each
// dimension has to step over all elements that the dimensions before it reach.
// A query row that sees no key gives out = 0 and lse = -inf (lse = the sink with attention sinks).
// Bad arguments throw Error(invalid_argument); a legal problem that no backend serves throws
// Error(unsupported) with every backend's reason.
#pragma once

#include <cstdint>
#include <optional>

#include "flashmha/device.h"
#include "flashmha/tensor.h"

namespace flashmha {

// What a causal mask or window is aligned to when seqlen_q != seqlen_k: the last query sees the
// last key (bottom_right, FlashAttention's meaning since 2.1), or the first the first (top_left,
// PyTorch's).
enum class MaskAlign : std::uint8_t { bottom_right, top_left };

// Dropout of attention probabilities. Whether element (batch, head, row, column) is kept depends on
// these numbers and on (seed, offset) only: equal on every backend, tiling and split.
struct Dropout {
  float p = 0.0f;  // in [0, 1)
  std::uint64_t seed = 0;
  std::uint64_t offset = 0;
};

struct AttentionOptions {
  std::optional<float> softmax_scale;  // default 1 / sqrt(head_dim)
  bool causal = false;                 // window_right = 0
  // Query i sees keys [i + shift - window_left, i + shift + window_right], both ends included;
  // shift = seqlen_k - seqlen_q for bottom_right, 0 for top_left. -1 = unbounded.
  std::int64_t window_left = -1;
  std::int64_t window_right = -1;
  MaskAlign align = MaskAlign::bottom_right;
  // > 0: scaled scores become softcap * tanh(score / softcap), before bias and masks.
  float softcap = 0.0f;
  Dropout dropout;  // forward and backward need the same value
  // float32 [num_heads_q] or [batch, num_heads_q]: adds -slope * |i + shift - j|.
  TensorView alibi_slopes;
  // float32 or q's dtype, rank 4, broadcastable to [batch, num_heads_q, seqlen_q, seqlen_k].
  TensorView bias;
  TensorView mask;  // boolean, broadcastable like bias; true = may be seen
  // float32 or q's dtype [num_heads_q]: one more logit per head, in the denominator only.
  TensorView sinks;
  bool deterministic = false;  // backward gives the same bits every time (on a CPU it always does)
};

// Ragged batches: q is [total_q, num_heads_q, head_dim], sequence b owns rows
// [cu_seqlens_q[b], cu_seqlens_q[b+1]); k and v likewise. bias and mask are indexed by positions
// inside the sequence and broadcast to [batch, num_heads_q, max_seqlen_q, max_seqlen_k].
struct Sequences {
  TensorView cu_seqlens_q;        // int32 [batch + 1], starts at 0, never falls
  TensorView cu_seqlens_k;        // int32 [batch + 1]
  std::int64_t max_seqlen_q = 0;  // upper bounds of the lengths; may exceed them
  std::int64_t max_seqlen_k = 0;
  // int32 [batch] or not given: only the first seqused_q[b] rows are real, the rest give out 0.
  TensorView seqused_q;
  TensorView seqused_k;  // int32 [batch] or not given
  // Given: k and v are pages [num_pages, page_size, num_heads_kv, head_dim] and key j of sequence b
  // lies in page block_table[b, j / page_size]; cu_seqlens_k then only supplies the lengths.
  TensorView block_table;  // int32 [batch, max_pages]
};

// Rotary embedding applied to q and to appended keys (Su et al. 2021, "RoFormer").
struct Rotary {
  TensorView cos;            // float32 or q's dtype [num_positions, rotary_dim / 2]
  TensorView sin;            // same
  bool interleaved = false;  // true: pairs (2i, 2i+1); false: pairs (i, i + rotary_dim / 2)
  // int32 [batch, max(seqlen_q, seqlen_new)]: table rows of query i and of appended key i. Default:
  // the slot cache_seqlens[b] + i; without causal mask and window, queries all take slot
  // cache_seqlens[b], as in FlashAttention-2.
  TensorView positions;
};

// A cache of keys and values, contiguous [batch_cache, capacity, num_heads_kv, head_dim] or paged
// [num_pages, page_size, num_heads_kv, head_dim].
struct KVCacheView {
  TensorView k;
  TensorView v;
  TensorView cache_seqlens;  // int32 [batch]: slots filled before this call, left padding included
  TensorView cache_batch_idx;  // int32 [batch] or not given: row of the cache that batch row b uses
  TensorView cache_leftpad;    // int32 [batch] or not given: first slot that holds a real key
  TensorView block_table;      // int32 [batch, max_pages]: the cache is paged
};

struct AttentionResult {
  Tensor out;
  Tensor lse;
};

// ---- forward -----------------------------------------------------------------------------------

// Dense attention. Shapes: see the head of this file.
AttentionResult flash_attn_func(const TensorView& q, const TensorView& k, const TensorView& v,
                                const AttentionOptions& options = {}, Stream stream = {});

// kv [batch, seqlen_k, 2, num_heads_kv, head_dim].
AttentionResult flash_attn_kvpacked_func(const TensorView& q, const TensorView& kv,
                                         const AttentionOptions& options = {}, Stream stream = {});

// qkv [batch, seqlen, 3, num_heads, head_dim].
AttentionResult flash_attn_qkvpacked_func(const TensorView& qkv,
                                          const AttentionOptions& options = {}, Stream stream = {});

// Ragged batch: q [total_q, num_heads_q, head_dim], k [total_k, num_heads_kv, head_dim] (or pages),
// out [total_q, num_heads_q, head_dim_v], lse [num_heads_q, total_q]. cu_seqlens that fall, or that
// reach beyond the tensors, are refused; rows that belong to no sequence give out 0 and lse -inf.
AttentionResult flash_attn_varlen_func(const TensorView& q, const TensorView& k,
                                       const TensorView& v, const Sequences& sequences,
                                       const AttentionOptions& options = {}, Stream stream = {});

// kv [total_k, 2, num_heads_kv, head_dim].
AttentionResult flash_attn_varlen_kvpacked_func(const TensorView& q, const TensorView& kv,
                                                const Sequences& sequences,
                                                const AttentionOptions& options = {},
                                                Stream stream = {});

// qkv [total, 3, num_heads, head_dim]; sequences describes q, k is the same.
AttentionResult flash_attn_varlen_qkvpacked_func(const TensorView& qkv, const Sequences& sequences,
                                                 const AttentionOptions& options = {},
                                                 Stream stream = {});

// What a decoding step brings besides q and the cache.
struct AppendKV {
  // [batch, seqlen_new, num_heads_kv, head_dim(_v)] or not given: written into the cache at
  // [cache_seqlens, cache_seqlens + seqlen_new) before attention. cache_seqlens is not changed.
  TensorView k;
  TensorView v;
  Rotary rotary;       // applied to q and k
  int num_splits = 0;  // parts into which the keys are cut for parallelism; 0 = chosen by the plan
};

// q [batch, seqlen_q, num_heads_q, head_dim] against a cache; see KVCacheView and AppendKV. Keys
// [cache_leftpad, cache_seqlens + seqlen_new) of each row take part; causal and windows are aligned
// to them. No dropout. Has no backward.
AttentionResult flash_attn_with_kvcache(const TensorView& q, const KVCacheView& cache,
                                        const AppendKV& append = {},
                                        const AttentionOptions& options = {}, Stream stream = {});

// ---- backward ----------------------------------------------------------------------------------

struct AttentionGradients {
  Tensor dq;
  Tensor dk;
  Tensor dv;
  Tensor dbias;   // float32 (float64 with float64 q), options.bias's shape; defined if it was given
  Tensor dsinks;  // same dtype, [num_heads_q]; defined if sinks were given
};

// Gradients of flash_attn_func. out and lse are its results, dout has out's shape. dlse, if given,
// is the gradient of lse (float32, lse's shape). options must equal the forward's.
//
// A packed function's gradients are those of its parts, views of qkv or kv. To have them in one
// packed tensor, let an AttentionCall (flashmha/plan.h) write them there:
//
//   Tensor dqkv = Tensor::empty(qkv.shape, qkv.dtype);  // [batch, seqlen, 3, num_heads, head_dim]
//   const auto part = [](const TensorView& packed, int i) { return packed.select(2, i); };
//   AttentionCall call{.q = part(qkv, 0), .k = part(qkv, 1), .v = part(qkv, 2)};
//   call.out = result.out, call.lse = result.lse, call.dout = dout, call.options = options;
//   call.dq = part(dqkv, 0), call.dk = part(dqkv, 1), call.dv = part(dqkv, 2);
//   run(call);
AttentionGradients flash_attn_backward(const TensorView& dout, const TensorView& q,
                                       const TensorView& k, const TensorView& v,
                                       const AttentionResult& forward,
                                       const AttentionOptions& options = {},
                                       const TensorView& dlse = {}, Stream stream = {});

// Gradients of flash_attn_varlen_func (not with block_table).
AttentionGradients flash_attn_varlen_backward(const TensorView& dout, const TensorView& q,
                                              const TensorView& k, const TensorView& v,
                                              const AttentionResult& forward,
                                              const Sequences& sequences,
                                              const AttentionOptions& options = {},
                                              const TensorView& dlse = {}, Stream stream = {});

}  // namespace flashmha
