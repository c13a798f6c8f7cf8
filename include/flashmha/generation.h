// Generation with a CausalLM: greedy, sampled or by beam search, for batches of prompts of
// different lengths, through any of the caches or none.
//
// A row's tokens do not depend on the batch that it is in: its draws depend on its index and its
// step alone, and padding is never seen.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "flashmha/model.h"
#include "flashmha/sampling.h"

namespace flashmha::model {

enum class CacheKind : std::uint8_t { dynamic_cache, static_cache, sliding_cache, paged_cache };

// "dynamic", "static", "sliding" or "paged".
std::string_view cache_kind_name(CacheKind kind);

// Caches for all layers. capacity in tokens bounds the static cache; sliding caches hold the window
// of their layer, and layers without one get dynamic caches (refused if no layer has a window);
// pages have 16 tokens.
nn::KVCaches make_caches(const ModelConfig& config, CacheKind kind, std::int64_t capacity);

// When beam search stops looking for something better than the num_beams sequences that it has.
enum class EarlyStopping : std::uint8_t {
  heuristic,   // once the best unfinished sequence, ended now, would be worse than all of them
  when_found,  // at once
  never,       // once no length that is left could make it better
};

enum class FinishReason : std::uint8_t {
  length,       // max_new_tokens
  stop_token,   // one of stop_token_ids, which is the last token
  stop_string,  // generate_text only
  callback,     // on_token said so
};

// "length", "stop_token", "stop_string" or "callback".
std::string_view finish_reason_name(FinishReason reason);

struct GenerationOptions {
  std::int64_t max_new_tokens = 32;
  // A row that produced one of these is finished.
  std::vector<std::int64_t> stop_token_ids{};
  // What generate(TensorView) puts behind the last token of a row.
  std::int64_t pad_token_id = 0;
  // Results of every prompt: the best beams, or so many draws.
  std::int64_t num_return_sequences = 1;

  SamplingOptions sampling{};
  // Row r = prompt * num_return_sequences + sequence draws at DrawPosition{first_row + r, step}: a
  // batch that is cut over several calls gives what it gives in one.
  std::uint64_t first_row = 0;

  // Above 1: beam search as in Transformers. Excludes a temperature above 0 and on_token.
  std::int64_t num_beams = 1;
  // A finished sequence's score is the sum of its log probabilities / length^length_penalty, length
  // counting new tokens.
  double length_penalty = 1.0;
  EarlyStopping early_stopping = EarlyStopping::heuristic;

  // Called with every token when it is chosen, row by row in each step; false ends the row.
  std::function<bool(std::int64_t row, std::int64_t token)> on_token{};
  // Called at the end of every step, the first is 0: for progress and times.
  std::function<void(std::int64_t step)> on_step{};

  // What generate(prompts) makes for the call; nullopt: none, every step computes everything.
  std::optional<CacheKind> cache = CacheKind::dynamic_cache;
};

// Throws invalid_argument for options that are out of range or exclude each other; generate does it
// first.
void check_generation(const GenerationOptions& options);

// What follows a prompt.
struct Generated {
  std::int64_t prompt = 0;           // its index
  std::vector<std::int64_t> tokens;  // new ones only, the stop token included
  FinishReason finish_reason = FinishReason::length;
  double score = 0.0;  // beam search: see length_penalty
};

// Continues every prompt, each at least one token of [0, vocab_size). num_return_sequences results
// a prompt, in the order of the prompts; those of beam search by falling score (and fewer, if there
// are not so many sequences at all). Throws invalid_argument for bad options, stop tokens or
// prompts, and if the model's logits are NaN or +inf.
std::vector<Generated> generate(const CausalLM& model,
                                std::span<const std::vector<std::int64_t>> prompts,
                                const GenerationOptions& options = {});

// The same for a tensor: prompts int32 or int64 [batch, seqlen], padded on the left;
// attention_mask [batch, seqlen], non-zero = real token; right padding is refused. caches must be
// empty, and lose the rows that finish; null: every step computes the whole sequence. Returns int64
// [batch * num_return_sequences, seqlen + the most new tokens], each row with its prompt as it was
// given; rows that ended earlier go on with pad_token_id.
Tensor generate(const CausalLM& model, const TensorView& prompts,
                const TensorView& attention_mask = {}, nn::KVCaches* caches = nullptr,
                const GenerationOptions& options = {});

}  // namespace flashmha::model
