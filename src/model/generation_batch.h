// The rows that are being continued, and what the model has seen of them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "flashmha/generation.h"
#include "model/decode_graph.h"

namespace flashmha::model {

using Tokens = std::vector<std::int64_t>;

class GenerationBatch {
 public:
  // prompts: checked, none empty. Shorter ones are padded on the left. caches empty, or null.
  GenerationBatch(const CausalLM& model, std::span<const Tokens> prompts, nn::KVCaches* caches);

  std::int64_t num_rows() const { return static_cast<std::int64_t>(rows_.size()); }
  // Prompt and new tokens.
  std::span<const std::int64_t> tokens(std::int64_t row) const {
    return rows_[static_cast<std::size_t>(row)];
  }

  // Logits [num_rows, 1, vocab_size] of the next token, in the model's dtype; valid until the next
  // call.
  const Tensor& next_logits();

  // Row r becomes what row rows[r] was; rows may come twice or not at all.
  void select(std::span<const std::int64_t> rows);
  // One token for each row.
  void append(std::span<const std::int64_t> tokens);

 private:
  Tensor left_padding_mask() const;
  std::int64_t padding_of(const Tokens& row) const { return seqlen_ - std::ssize(row); }
  // Of all tokens that the caches have not seen.
  Tensor computed_logits(std::int64_t count) const;
  const Tensor& decoded_logits();

  const CausalLM* model_;
  nn::KVCaches* caches_;
  std::vector<Tokens> rows_;
  std::int64_t seqlen_;  // of every row, padding included
  std::optional<DecodeGraph> decode_;
  Tensor logits_;
};

// Beam search over the prompts' rows; results as generate gives them.
std::vector<Generated> beam_search(GenerationBatch& batch, const GenerationOptions& options);

}  // namespace flashmha::model
