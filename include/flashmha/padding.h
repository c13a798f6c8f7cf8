// Padded batches: between [batch, seqlen] with a mask and [total] without gaps, and attention that
// chooses by itself. Masks are [batch, seqlen], boolean, int32 or int64, non-zero = real token.
//
// Left, right and middle padding are all allowed and give what every sequence gives alone.
#pragma once

#include <cstdint>
#include <optional>

#include "flashmha/attention.h"
#include "flashmha/tensor.h"

namespace flashmha {

// Where the real tokens of a padded batch are.
struct UnpadData {
  // int64 [total]: rows of the flattened [batch * seqlen] that are kept, rising; with a bound,
  // ops::kNoRow behind the last one.
  Tensor indices;
  Tensor cu_seqlens;            // int32 [num_sequences + 1]
  Tensor seqused;               // int32 [num_sequences]; defined only with an unused_mask
  std::int64_t max_seqlen = 0;  // longest sequence
  std::int64_t batch = 0;       // of the padded tensor
  std::int64_t seqlen = 0;

  std::int64_t total() const { return indices.defined() ? indices.size(0) : 0; }
};

// How many tokens there are at most: then nobody has to look, and on a GPU nobody waits. Tensors
// are as large as the bound says; rows of nobody, behind the last token, are zeros.
struct UnpadBound {
  std::int64_t total = 0;       // at most batch * seqlen, which always holds
  std::int64_t max_seqlen = 0;  // at most seqlen
};

// unused_mask: tokens (same shape, disjoint from mask) that keep their place in the packed layout
// although they are not used; seqused then counts the real tokens of each sequence. The result is
// where the mask is; of a mask on a GPU the numbers of tokens are waited for, unless a bound is
// given. Tokens beyond a bound are refused on a CPU and left out on a GPU.
UnpadData get_unpad_data(const TensorView& mask, const TensorView& unused_mask = {},
                         const std::optional<UnpadBound>& bound = {});

// lengths int32 or int64 [batch, seqlen]: row b holds the lengths of the sequences packed into it
// one after another, then zeros. One entry of cu_seqlens for each non-zero length.
UnpadData get_unpad_data_for_concatenated_sequences(const TensorView& lengths);

// x [batch, seqlen, ...] -> [total, ...]: the real rows, in order.
Tensor unpad_input(const TensorView& x, const UnpadData& data);
// dout [total, ...] -> dx [batch, seqlen, ...], 0 at padding.
Tensor unpad_input_backward(const TensorView& dout, const UnpadData& data);

// x [total, ...] -> [batch, seqlen, ...], padded rows exactly 0.
Tensor pad_input(const TensorView& x, const UnpadData& data);
// dout [batch, seqlen, ...] -> dx [total, ...].
Tensor pad_input_backward(const TensorView& dout, const UnpadData& data);

// Several sequences laid end to end in the rows of a batch.
struct PackedSequences {
  Tensor cu_seqlens;  // int32 [num_sequences + 1] over the flattened [batch * seqlen] tokens
  std::int64_t max_seqlen = 0;  // may be an upper bound
};

// position_ids int32 or int64 [batch, seqlen]: a sequence starts where the position is the smallest
// of its row, and then counts up by 1. Refused: other ranks (three rows of ids for text, height and
// width are not three sequences), negative positions, a row that does not start at its minimum,
// jumps.
PackedSequences packed_sequences(const TensorView& position_ids);

// Positions inside each packed sequence, 0 for tokens of none: int32 [batch, seqlen], on the host.
Tensor packed_positions(const PackedSequences& packed, std::int64_t batch, std::int64_t seqlen);

// Logical positions of the last seqlen_q columns of a mask: a real token's number among the real
// tokens of its row, 0 for padding. int32 [batch, seqlen_q].
Tensor positions_from_mask(const TensorView& mask, std::int64_t seqlen_q);

// Hugging Face's window length counts the token itself: length W is the pair (W - 1, 0) of a causal
// layer and (W - 1, W - 1) of others. Length 0: unbounded.
struct Window {
  std::int64_t left = -1;
  std::int64_t right = -1;
};
Window window_of_length(std::int64_t length, bool causal);

// Attention on padded, packed or dense batches.
struct FlashAttentionMixin {
  // Which query rows are real when a mask is given.
  enum class Queries : std::uint8_t {
    // Self-attention: the mask's last seqlen_q columns; a single query is always real.
    from_mask,
    // Cross-attention: all.
    all,
  };

  // q, k, v without padding.
  struct Unpadded {
    Tensor q, k, v;  // [total_q, num_heads_q, head_dim], [total_k, num_heads_kv, head_dim(_v)]
    UnpadData queries;
    UnpadData keys;

    Sequences sequences() const;
  };

  // What forward returns and backward reads.
  struct Result {
    AttentionResult attention;         // dense: padded shapes; otherwise packed
    std::optional<Unpadded> unpadded;  // given if padding was removed
    Tensor padded_out;                 // then: out with padding
    Shape out_shape;
    std::int64_t seqlen_k = 0;  // keys that took part: those that the mask does not cut off

    // [batch, seqlen_q, num_heads_q, head_dim_v]; padded rows are exactly 0.
    TensorView out() const;
  };

  // Gradients with the shapes of q, k, v; 0 at padding and in keys beyond the mask.
  using Gradients = AttentionGradients;

  struct Options {
    AttentionOptions attention = {};
    // Packed batch, not together with a mask. max_seqlen 0: the longest sequence is looked up.
    const PackedSequences* packed = nullptr;
    Queries queries = Queries::from_mask;
    // Of the mask's tokens. Given: the mask is not looked at (the dense path is not chosen), and on
    // a GPU nothing waits.
    std::optional<UnpadBound> bound = {};
  };

  static UnpadData get_unpad_data(const TensorView& mask) { return flashmha::get_unpad_data(mask); }

  // q [batch, seqlen_q, num_heads_q, head_dim], k and v [batch, seqlen_k, num_heads_kv, head_dim].
  // Keys beyond the mask are cut off (static caches); of a mask longer than k the last columns
  // count (sliding caches). Queries: as many as keys - the same rows; one - all real; otherwise the
  // last seqlen_q columns of the mask.
  static Unpadded upad_input(const TensorView& q, const TensorView& k, const TensorView& v,
                             const TensorView& mask, Queries queries = Queries::from_mask,
                             const std::optional<UnpadBound>& bound = {});

  // Dense without a mask or if the mask has no zero; without padding otherwise. A mask together
  // with packed sequences is refused, and so is one together with options.attention.bias or .mask
  // (which would have to lose rows and columns with the padding).
  static Result forward(const TensorView& q, const TensorView& k, const TensorView& v,
                        const TensorView& mask, const Options& options);
  static Result forward(const TensorView& q, const TensorView& k, const TensorView& v,
                        const TensorView& mask = {}) {
    return forward(q, k, v, mask, Options{});
  }

  // options must equal the forward's. dsinks is float32 [num_heads_q].
  static Gradients backward(const TensorView& dout, const TensorView& q, const TensorView& k,
                            const TensorView& v, const Result& result, const Options& options);
  static Gradients backward(const TensorView& dout, const TensorView& q, const TensorView& k,
                            const TensorView& v, const Result& result) {
    return backward(dout, q, k, v, result, Options{});
  }
};

}  // namespace flashmha
