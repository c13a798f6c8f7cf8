// The one list of attention problems, for tests on every backend. A case is data;
// tests/attention/instance.h makes tensors of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flashmha/attention.h"

namespace flashmha::tests {

enum Tag : unsigned {
  kSmoke = 1,       // one of each kind, seconds together
  kDegenerate = 2,  // lengths 0 and 1, rows that see nothing, every option on them
  kFull = 4,        // the grid of FlashAttention-2's tests, and ours
  kLong = 8,        // caches of up to 131072 keys; more heads than are packed at a time
};

enum class Layout : std::uint8_t { dense, ragged, ragged_paged, cache, cache_paged };

// How long the sequences of a batch are, given the longest.
enum class Lengths : std::uint8_t { equal, random, some_zero, all_zero };

// Which dimensions of [batch, num_heads_q, seqlen_q, seqlen_k] a bias or mask varies along.
enum Varies : unsigned { kNowhere = 0, kBatch = 1, kHead = 2, kRow = 4, kColumn = 8 };

// An optional bias or mask.
struct ScoreTensor {
  bool given = false;
  unsigned varies = kNowhere;
};

struct Case {
  Layout layout = Layout::dense;
  DType dtype = DType::float32;
  std::int64_t batch = 2;
  std::int64_t seqlen_q = 64;  // of the longest sequence
  std::int64_t seqlen_k = 64;  // of the longest sequence; of a cache: its capacity
  std::int64_t num_heads_q = 4;
  std::int64_t num_heads_kv = 4;
  std::int64_t head_dim = 64;
  std::int64_t head_dim_v = 0;         // 0: head_dim
  Lengths lengths_q = Lengths::equal;  // ragged layouts
  Lengths lengths_k = Lengths::equal;  // ragged layouts and caches

  bool causal = false;
  std::int64_t window_left = -1;
  std::int64_t window_right = -1;
  MaskAlign align = MaskAlign::bottom_right;
  float softcap = 0.0f;
  float dropout = 0.0f;
  float softmax_scale = 0.0f;  // 0: the default
  bool alibi = false;          // one slope per head and batch row
  ScoreTensor bias{};
  ScoreTensor mask{};
  bool narrow_extras = false;  // bias, sinks and rotary tables in the dtype of q instead of float32
  bool sinks = false;
  bool dlse = false;  // backward: lse has a gradient too

  std::int64_t page_size = 48;  // paged layouts
  std::int64_t seqlen_new = 0;  // caches: keys appended
  std::int64_t rotary_dim = 0;  // caches
  bool rotary_interleaved = false;
  bool positions = false;  // rotary positions given
  bool leftpad = false;
  bool batch_idx = false;  // contiguous caches
  int num_splits = 0;
  bool seqused = false;  // ragged layouts
  bool strided = false;  // tensors are windows of larger ones

  unsigned tags = 0;
};

inline bool is_ragged(const Case& c) {
  return c.layout == Layout::ragged || c.layout == Layout::ragged_paged;
}
inline bool is_cache(const Case& c) {
  return c.layout == Layout::cache || c.layout == Layout::cache_paged;
}
inline bool is_paged(const Case& c) {
  return c.layout == Layout::cache_paged || c.layout == Layout::ragged_paged;
}
inline bool has_backward(const Case& c) {
  return !is_cache(c) && !is_paged(c);
}
inline std::int64_t value_dim(const Case& c) {
  return c.head_dim_v > 0 ? c.head_dim_v : c.head_dim;
}

// Every field that differs from the default, as one line.
std::string describe(const Case& c);

// The cases that carry one of the tags, in a fixed order.
std::vector<Case> cases(unsigned tags);

// A case drawn at random from the whole space of legal problems; sizes stay small.
Case random_case(std::uint64_t seed);

}  // namespace flashmha::tests
