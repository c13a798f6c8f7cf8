// Greedy generation with a CausalLM, through any of the caches or none.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "flashmha/model.h"

namespace flashmha::model {

enum class CacheKind : std::uint8_t { dynamic_cache, static_cache, sliding_cache, paged_cache };

// "dynamic", "static", "sliding" or "paged".
std::string_view cache_kind_name(CacheKind kind);

// Caches for all layers. capacity in tokens bounds the static cache; sliding caches hold the window
// of their layer, and layers without one get dynamic caches (refused if no layer has a window);
// pages have 16 tokens.
nn::KVCaches make_caches(const ModelConfig& config, CacheKind kind, std::int64_t capacity);

struct GenerationOptions {
  std::int64_t max_new_tokens = 32;
  // A row that produced this token is finished and continues with pad_token_id.
  std::optional<std::int64_t> eos_token_id;
  std::int64_t pad_token_id = 0;
};

// Continues prompts int32 or int64 [batch, seqlen] with the most likely token each time. Prompts of
// different lengths are padded on the left: attention_mask [batch, seqlen], non-zero = real token;
// right padding is refused. caches must be empty; null: every step computes the whole sequence.
// Returns int64 [batch, seqlen + number of new tokens]: stops early once all rows are finished.
Tensor generate(const CausalLM& model, const TensorView& prompts,
                const TensorView& attention_mask = {}, nn::KVCaches* caches = nullptr,
                const GenerationOptions& options = {});

}  // namespace flashmha::model
