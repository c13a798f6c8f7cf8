// Caches of keys and values for generation, one object per layer.
//
// Slots are physical: every token that is appended takes one, padding included. Which of them are
// real is said by the attention mask of each call, and rotary positions are logical (they do not
// count padding): a cache knows neither. Lengths are counted, never guessed from shapes: slots that
// were not filled never take part.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "flashmha/tensor.h"

namespace flashmha::nn {

// The keys and values that the queries of a step attend to. Views of the cache (or of the tensors
// that were appended), valid until the cache is changed.
struct CachedKeys {
  TensorView k = {};            // [batch, capacity, num_heads_kv, head_dim], or with a block table
  TensorView v = {};            // [num_pages, page_size, num_heads_kv, head_dim]
  TensorView block_table = {};  // int32 [batch, max_pages], or not given
  std::int64_t seqlen = 0;      // keys, of every row
  // Slot of the oldest key; key i is in slot (first_slot + i) % capacity.
  std::int64_t first_slot = 0;
};

// Contiguous keys and values, oldest first.
struct OrderedKeys {
  TensorView k = {};  // [batch, seqlen, num_heads_kv, head_dim]
  TensorView v = {};
  Tensor k_copy, v_copy;  // what the views point to if a copy was needed (rings, pages)
};
OrderedKeys in_order(const CachedKeys& keys);

// One decoding step, one new token a row, whose lengths are on the device: the same work in every
// step, as a Graph needs it. For caches that give out their memory (KVCache::reserve).
struct DecodeStep {
  TensorView cache_seqlens = {};  // int32 [batch]: slots that are filled before the step
  TensorView cache_leftpad = {};  // int32 [batch]: first slot with a real token; or not given
};

// All slots of a cache, filled or not: [batch, capacity, num_heads_kv, head_dim].
struct ReservedKeys {
  TensorView k = {};
  TensorView v = {};
};

class KVCache {
 public:
  KVCache() = default;
  KVCache(const KVCache&) = delete;
  KVCache& operator=(const KVCache&) = delete;
  virtual ~KVCache() = default;

  // Tokens appended so far, also those that are no longer held.
  std::int64_t seqlen() const { return seqlen_; }
  // Rows; 0 before the first append.
  virtual std::int64_t batch() const = 0;

  // Appends k, v [batch, seqlen_new, num_heads_kv, head_dim(_v)] and returns all keys that the
  // appended tokens may attend to, themselves included. The first append fixes batch, heads,
  // head_dim and dtype. Throws invalid_argument if they change or the capacity is exceeded.
  virtual CachedKeys append(const TensorView& k, const TensorView& v) = 0;

  // For steps that write to the cache by themselves: makes room for `count` more tokens and returns
  // all slots, which stay where they are until more room is needed or the batch changes. Not given
  // by caches that move their slots (sliding, paged), and by empty ones. Throws invalid_argument if
  // the capacity is exceeded.
  virtual std::optional<ReservedKeys> reserve(std::int64_t count);
  // Counts tokens that such steps have written.
  void advance(std::int64_t count);

  // Forgets all tokens from seqlen on. Negative: forgets -seqlen tokens. A sliding cache that has
  // already dropped tokens cannot do it and throws.
  virtual void crop(std::int64_t seqlen) = 0;

  // Row b becomes a copy of what row rows[b] was; the batch becomes rows.size().
  virtual void select(std::span<const std::int64_t> rows) = 0;

  // Beam search: like select, but the batch must stay the same.
  void reorder(std::span<const std::int64_t> rows);
  // Every row times times in a row: 0 0 1 1 2 2.
  void repeat(std::int64_t times);
  // Back to empty; memory is kept where that is useful.
  virtual void reset() = 0;

 protected:
  std::int64_t seqlen_ = 0;
};

// Grows by doubling: appending n tokens one by one copies O(n) tokens.
class DynamicKVCache : public KVCache {
 public:
  std::int64_t batch() const override { return k_.defined() ? k_.size(0) : 0; }
  CachedKeys append(const TensorView& k, const TensorView& v) override;
  std::optional<ReservedKeys> reserve(std::int64_t count) override;
  void crop(std::int64_t seqlen) override;
  void select(std::span<const std::int64_t> rows) override;
  void reset() override;

 private:
  void make_room(std::int64_t count, const TensorView& k, const TensorView& v);

  Tensor k_;  // [batch, capacity, num_heads_kv, head_dim]
  Tensor v_;
};

// Fixed capacity, allocated once: addresses never change unless the batch does.
class StaticKVCache : public KVCache {
 public:
  explicit StaticKVCache(std::int64_t capacity);
  std::int64_t batch() const override { return k_.defined() ? k_.size(0) : 0; }
  CachedKeys append(const TensorView& k, const TensorView& v) override;
  std::optional<ReservedKeys> reserve(std::int64_t count) override;
  void crop(std::int64_t seqlen) override;
  void select(std::span<const std::int64_t> rows) override;
  void reset() override;

 private:
  void require_room(std::int64_t count) const;

  std::int64_t capacity_;
  Tensor k_;
  Tensor v_;
};

// For layers with a window of `window` keys, the token itself included. A ring of that many slots.
// A single new token attends to the ring in place; several attend to the window - 1 keys before
// them and to all of themselves (the window masks), also if they are more than the ring holds.
class SlidingKVCache : public KVCache {
 public:
  explicit SlidingKVCache(std::int64_t window);
  std::int64_t batch() const override { return k_.defined() ? k_.size(0) : 0; }
  CachedKeys append(const TensorView& k, const TensorView& v) override;
  void crop(std::int64_t seqlen) override;
  void select(std::span<const std::int64_t> rows) override;
  void reset() override;

 private:
  CachedKeys append_one(const TensorView& k, const TensorView& v);
  void store_last(const TensorView& k, const TensorView& v);

  std::int64_t window_;
  Tensor k_;  // [batch, window, num_heads_kv, head_dim]; token t is in slot t % window
  Tensor v_;
  Tensor k_staging_;  // the keys of the last append of several tokens
  Tensor v_staging_;
};

// Pages of any size from one pool. select() shares pages; a shared page is copied when it is
// written.
class PagedKVCache : public KVCache {
 public:
  // max_pages 0: the pool grows as needed; otherwise exceeding it throws.
  explicit PagedKVCache(std::int64_t page_size, std::int64_t max_pages = 0);
  std::int64_t batch() const override { return static_cast<std::int64_t>(tables_.size()); }
  CachedKeys append(const TensorView& k, const TensorView& v) override;
  void crop(std::int64_t seqlen) override;
  void select(std::span<const std::int64_t> rows) override;
  void reset() override;

  std::int64_t num_pages_used() const;

 private:
  std::int64_t pages_for(std::int64_t seqlen) const {
    return (seqlen + page_size_ - 1) / page_size_;
  }
  bool last_page_is_shared(const std::vector<std::int32_t>& table) const;
  std::int64_t pages_needed(std::int64_t seqlen_new) const;
  std::int32_t allocate_page();
  void release_page(std::int32_t page);
  void reserve_pages(std::int64_t needed, const TensorView& k, const TensorView& v);
  void extend_rows(std::int64_t seqlen_new);
  void write(const TensorView& pages, const TensorView& x) const;
  void write_block_table();

  std::int64_t page_size_;
  std::int64_t max_pages_;
  Tensor k_pages_;  // [num_pages, page_size, num_heads_kv, head_dim]
  Tensor v_pages_;
  std::vector<int> references_;  // of every page
  std::vector<std::int32_t> free_pages_;
  std::vector<std::vector<std::int32_t>> tables_;  // pages of every row
  Tensor block_table_;
};

// The caches of all layers of a model.
struct KVCaches {
  std::vector<std::unique_ptr<KVCache>> layers;

  // make(layer) gives the cache of one layer.
  static KVCaches create(std::int64_t num_layers,
                         const std::function<std::unique_ptr<KVCache>(std::int64_t layer)>& make);

  std::int64_t seqlen() const { return layers.empty() ? 0 : layers.front()->seqlen(); }
  // False if a layer's cache does not give out its memory.
  bool reserve(std::int64_t count);
  void advance(std::int64_t count);
  void crop(std::int64_t seqlen);
  void select(std::span<const std::int64_t> rows);
  void reorder(std::span<const std::int64_t> rows);
  void repeat(std::int64_t times);
  void reset();
};

}  // namespace flashmha::nn
