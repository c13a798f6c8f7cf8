// What an AttentionConfig leaves open, and what it must not say.
#include "core/check.h"
#include "flashmha/mha.h"

namespace flashmha::nn {

AttentionConfig AttentionConfig::resolved() const {
  AttentionConfig full = *this;
  check(hidden_size > 0 && num_heads > 0,
        "[AttentionConfig] hidden_size ({}) and num_heads ({}) must be positive", hidden_size,
        num_heads);
  if (full.num_kv_heads == 0) full.num_kv_heads = num_heads;
  if (full.head_dim == 0) {
    check(hidden_size % num_heads == 0,
          "[AttentionConfig] hidden_size ({}) must be a multiple of num_heads ({}) where head_dim "
          "is not given",
          hidden_size, num_heads);
    full.head_dim = hidden_size / num_heads;
  }
  check(full.num_kv_heads > 0 && num_heads % full.num_kv_heads == 0,
        "[AttentionConfig] num_heads ({}) must be a multiple of num_kv_heads ({})", num_heads,
        full.num_kv_heads);
  check(full.head_dim > 0, "[AttentionConfig] head_dim ({}) must be positive", full.head_dim);
  check(sliding_window >= 0, "[AttentionConfig] sliding_window ({}) must not be negative",
        sliding_window);
  check(dropout >= 0.0f && dropout < 1.0f, "[AttentionConfig] dropout ({}) must be in [0, 1)",
        dropout);
  if (full.rotary && full.rotary->head_dim == 0) full.rotary->head_dim = full.head_dim;
  check(!full.rotary || full.rotary->head_dim == full.head_dim,
        "[AttentionConfig] rotary.head_dim ({}) must be head_dim ({})",
        full.rotary ? full.rotary->head_dim : 0, full.head_dim);
  return full;
}

}  // namespace flashmha::nn
