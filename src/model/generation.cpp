// Greedy generation.
#include "flashmha/generation.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "core/check.h"

namespace flashmha::model {
namespace {

constexpr std::int64_t kPageSize = 16;

// The mask of prompts and of everything that will be generated: int64 [batch, length].
Tensor extended_mask(const TensorView& mask, std::int64_t length) {
  Tensor extended = Tensor::empty({mask.size(0), length}, DType::int64, mask.device);
  fill(extended, 1.0);
  copy(mask, extended.view().slice(1, 0, mask.size(1)));
  const TensorView last = extended.view().select(1, mask.size(1) - 1);
  for (std::int64_t row = 0; row < mask.size(0); ++row) {
    check(last.as<std::int64_t>()[row * last.stride(0)] != 0,
          "[generate] prompts must be padded on the left; the last token of row {} is padding",
          row);
  }
  return extended;
}

// Replaces the new tokens of finished rows by padding; true once all rows are finished.
bool finish_rows(const TensorView& column, const GenerationOptions& options,
                 std::vector<bool>& finished) {
  if (!options.eos_token_id) return false;
  for (std::size_t row = 0; row < finished.size(); ++row) {
    std::int64_t& token =
        column.as<std::int64_t>()[static_cast<std::int64_t>(row) * column.stride(0)];
    if (finished[row]) token = options.pad_token_id;
    finished[row] = finished[row] || token == *options.eos_token_id;
  }
  return std::ranges::all_of(finished, [](bool done) { return done; });
}

}  // namespace

std::string_view cache_kind_name(CacheKind kind) {
  switch (kind) {
    case CacheKind::dynamic_cache: return "dynamic";
    case CacheKind::static_cache: return "static";
    case CacheKind::sliding_cache: return "sliding";
    case CacheKind::paged_cache: return "paged";
  }
  return "unknown";
}

nn::KVCaches make_caches(const ModelConfig& config, CacheKind kind, std::int64_t capacity) {
  check(kind != CacheKind::sliding_cache || config.has_sliding_window(),
        "[make_caches] a sliding cache needs a model with a sliding_window; no layer has one");
  const auto make = [&](std::int64_t layer) -> std::unique_ptr<nn::KVCache> {
    const std::int64_t window = config.attention_config(layer).sliding_window;
    switch (kind) {
      case CacheKind::dynamic_cache: return std::make_unique<nn::DynamicKVCache>();
      case CacheKind::static_cache: return std::make_unique<nn::StaticKVCache>(capacity);
      case CacheKind::sliding_cache:
        if (window == 0) return std::make_unique<nn::DynamicKVCache>();
        return std::make_unique<nn::SlidingKVCache>(window);
      case CacheKind::paged_cache: return std::make_unique<nn::PagedKVCache>(kPageSize);
    }
    return nullptr;
  };
  return nn::KVCaches::create(config.num_layers, make);
}

Tensor generate(const CausalLM& model, const TensorView& prompts, const TensorView& attention_mask,
                nn::KVCaches* caches, const GenerationOptions& options) {
  check(prompts.rank() == 2 && prompts.numel() > 0,
        "[generate] prompts must be [batch, seqlen], not empty; got {}", to_string(prompts));
  check(options.max_new_tokens >= 0, "[generate] max_new_tokens must not be negative; got {}",
        options.max_new_tokens);
  check(!attention_mask.defined() || attention_mask.shape == prompts.shape,
        "[generate] attention_mask must have the shape of prompts; got {} and {}",
        to_string(attention_mask), to_string(prompts));
  check(!caches || caches->seqlen() == 0, "[generate] caches must be empty; they hold {} tokens",
        caches ? caches->seqlen() : 0);
  const std::int64_t batch = prompts.size(0);
  const std::int64_t prompt_seqlen = prompts.size(1);
  const std::int64_t max_seqlen = prompt_seqlen + options.max_new_tokens;

  const Tensor tokens = Tensor::empty({batch, max_seqlen}, DType::int64, prompts.device);
  copy(prompts, tokens.view().slice(1, 0, prompt_seqlen));
  const Tensor mask =
      attention_mask.defined() ? extended_mask(attention_mask, max_seqlen) : Tensor();
  const Tensor next = Tensor::empty({batch, 1}, DType::int32, prompts.device);
  std::vector<bool> finished(static_cast<std::size_t>(batch), false);

  std::int64_t seqlen = prompt_seqlen;
  for (bool done = false; seqlen < max_seqlen && !done; ++seqlen) {
    const std::int64_t seen = caches ? caches->seqlen() : 0;
    const Tensor logits = model.forward(
        {.input_ids = tokens.view().slice(1, seen, seqlen),
         .attention_mask = mask.defined() ? mask.view().slice(1, 0, seqlen) : TensorView(),
         .caches = caches,
         .last_logits_only = true});
    ops::argmax(logits, next);
    const TensorView column = tokens.view().slice(1, seqlen, seqlen + 1);
    copy(next, column);
    done = finish_rows(column, options, finished);
  }
  return clone(tokens.view().slice(1, 0, seqlen));
}

}  // namespace flashmha::model
