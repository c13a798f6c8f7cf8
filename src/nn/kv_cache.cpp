// Dynamic, static and sliding caches. The paged one is in paged_kv_cache.cpp.
#include "flashmha/kv_cache.h"

#include <algorithm>

#include "nn/cache_rules.h"

namespace flashmha::nn {
namespace {

// Slots [begin, begin + x's seqlen) of cache become x.
void write_slots(const TensorView& cache, std::int64_t begin, const TensorView& x) {
  copy(x, cache.slice(1, begin, begin + x.size(1)));
}

Tensor with_capacity(const TensorView& x, std::int64_t batch, std::int64_t capacity) {
  return Tensor::empty({batch, capacity, x.size(2), x.size(3)}, x.dtype, x.device);
}

// Row b of the first `used` slots becomes what row rows[b] was. Memory stays where it is if the
// batch does.
void select_rows(Tensor& cache, std::span<const std::int64_t> rows, std::int64_t used) {
  const auto batch = static_cast<std::int64_t>(rows.size());
  bool same = batch == cache.size(0);
  for (std::int64_t b = 0; same && b < batch; ++b)
    same = rows[static_cast<std::size_t>(b)] == b;
  if (same) return;
  const Tensor before = clone(cache.view().slice(1, 0, used));
  if (batch != cache.size(0)) cache = with_capacity(cache, batch, cache.size(1));
  for (std::int64_t b = 0; b < batch; ++b) {
    copy(before.view().select(0, rows[static_cast<std::size_t>(b)]),
         cache.view().select(0, b).slice(0, 0, used));
  }
}

}  // namespace

std::int64_t cropped_length(std::int64_t held, std::int64_t seqlen) {
  const std::int64_t length = seqlen < 0 ? held + seqlen : std::min(seqlen, held);
  check(length >= 0, "[KVCache::crop] cannot forget {} of {} tokens", -seqlen, held);
  return length;
}

void check_append(const TensorView& k, const TensorView& v, std::int64_t batch,
                  const TensorView& cache_k, const TensorView& cache_v) {
  check(k.rank() == 4 && v.rank() == 4 && k.size(0) == v.size(0) && k.size(1) == v.size(1) &&
            k.size(2) == v.size(2) && k.dtype == v.dtype,
        "[KVCache::append] k and v must be [batch,seqlen_new,num_heads_kv,head_dim]; got {} and {}",
        k, v);
  if (!cache_k.defined()) return;
  check((batch == 0 || k.size(0) == batch) && k.size(2) == cache_k.size(2) &&
            k.size(3) == cache_k.size(3) && v.size(3) == cache_v.size(3) &&
            k.dtype == cache_k.dtype,
        "[KVCache::append] k and v must fit the cache (batch {}, {} heads of {} and {}, {}); got "
        "{} and {}",
        batch, cache_k.size(2), cache_k.size(3), cache_v.size(3), dtype_name(cache_k.dtype), k, v);
}

void check_rows(std::span<const std::int64_t> rows, std::int64_t batch) {
  for (const std::int64_t row : rows) {
    check(row >= 0 && row < batch, "[KVCache::select] rows must be in [0, {}); got {}", batch, row);
  }
}

void KVCache::reorder(std::span<const std::int64_t> rows) {
  check(static_cast<std::int64_t>(rows.size()) == batch(),
        "[KVCache::reorder] needs one row for each of the batch ({}); got {}", batch(),
        rows.size());
  select(rows);
}

void KVCache::repeat(std::int64_t times) {
  check(times >= 1, "[KVCache::repeat] times ({}) must be at least 1", times);
  std::vector<std::int64_t> rows;
  for (std::int64_t b = 0; b < batch(); ++b)
    rows.insert(rows.end(), static_cast<std::size_t>(times), b);
  select(rows);
}

std::optional<ReservedKeys> KVCache::reserve(std::int64_t) {
  return {};
}

void KVCache::advance(std::int64_t count) {
  check(reserve(count).has_value(),
        "[KVCache::advance] only caches that give out their memory (reserve) can be advanced");
  seqlen_ += count;
}

OrderedKeys in_order(const CachedKeys& keys) {
  OrderedKeys ordered;
  const auto collect = [&](const TensorView& from) {
    if (!keys.block_table.defined()) {
      Tensor to = with_capacity(from, from.size(0), keys.seqlen);
      const std::int64_t head = std::min(keys.seqlen, from.size(1) - keys.first_slot);
      copy(from.slice(1, keys.first_slot, keys.first_slot + head), to.view().slice(1, 0, head));
      copy(from.slice(1, 0, keys.seqlen - head), to.view().slice(1, head, keys.seqlen));
      return to;
    }
    const std::int64_t page_size = from.size(1);
    Tensor to = with_capacity(from, keys.block_table.size(0), keys.seqlen);
    for (std::int64_t b = 0; b < to.size(0); ++b) {
      for (std::int64_t first = 0; first < keys.seqlen; first += page_size) {
        const std::int64_t count = std::min(page_size, keys.seqlen - first);
        const std::int32_t page =
            keys.block_table.as<std::int32_t>()[b * keys.block_table.stride(0) + first / page_size];
        copy(from.select(0, page).slice(0, 0, count),
             to.view().select(0, b).slice(0, first, first + count));
      }
    }
    return to;
  };
  if (!keys.block_table.defined() && keys.first_slot == 0) {
    ordered.k = keys.k.slice(1, 0, keys.seqlen);
    ordered.v = keys.v.slice(1, 0, keys.seqlen);
    return ordered;
  }
  ordered.k_copy = collect(keys.k);
  ordered.v_copy = collect(keys.v);
  ordered.k = ordered.k_copy;
  ordered.v = ordered.v_copy;
  return ordered;
}

// ---- dynamic -----------------------------------------------------------------------------------

void DynamicKVCache::make_room(std::int64_t count, const TensorView& k, const TensorView& v) {
  const std::int64_t needed = seqlen_ + count;
  const std::int64_t capacity = k_.defined() ? k_.size(1) : 0;
  if (needed <= capacity) return;
  constexpr std::int64_t kFirstCapacity = 64;
  const std::int64_t grown = std::max({needed, 2 * capacity, kFirstCapacity});
  const auto grow = [&](Tensor& cache, const TensorView& like) {
    Tensor larger = with_capacity(like, like.size(0), grown);
    if (seqlen_ > 0) write_slots(larger, 0, cache.view().slice(1, 0, seqlen_));
    cache = std::move(larger);
  };
  grow(k_, k);
  grow(v_, v);
}

CachedKeys DynamicKVCache::append(const TensorView& k, const TensorView& v) {
  check_append(k, v, batch(), k_, v_);
  make_room(k.size(1), k, v);
  write_slots(k_, seqlen_, k);
  write_slots(v_, seqlen_, v);
  seqlen_ += k.size(1);
  return {.k = k_, .v = v_, .seqlen = seqlen_};
}

std::optional<ReservedKeys> DynamicKVCache::reserve(std::int64_t count) {
  if (!k_.defined()) return {};
  make_room(count, k_, v_);
  return ReservedKeys{.k = k_, .v = v_};
}

void DynamicKVCache::crop(std::int64_t seqlen) {
  seqlen_ = cropped_length(seqlen_, seqlen);
}

void DynamicKVCache::select(std::span<const std::int64_t> rows) {
  check_rows(rows, batch());
  if (!k_.defined()) return;
  select_rows(k_, rows, seqlen_);
  select_rows(v_, rows, seqlen_);
}

void DynamicKVCache::reset() {
  k_ = {};
  v_ = {};
  seqlen_ = 0;
}

// ---- static ------------------------------------------------------------------------------------

StaticKVCache::StaticKVCache(std::int64_t capacity) : capacity_(capacity) {
  check(capacity > 0, "[StaticKVCache] capacity ({}) must be positive", capacity);
}

void StaticKVCache::require_room(std::int64_t count) const {
  check(seqlen_ + count <= capacity_,
        "[StaticKVCache::append] {} more tokens exceed the capacity ({}); {} are held", count,
        capacity_, seqlen_);
}

CachedKeys StaticKVCache::append(const TensorView& k, const TensorView& v) {
  check_append(k, v, batch(), k_, v_);
  require_room(k.size(1));
  if (!k_.defined()) {
    k_ = with_capacity(k, k.size(0), capacity_);
    v_ = with_capacity(v, v.size(0), capacity_);
  }
  write_slots(k_, seqlen_, k);
  write_slots(v_, seqlen_, v);
  seqlen_ += k.size(1);
  return {.k = k_, .v = v_, .seqlen = seqlen_};
}

std::optional<ReservedKeys> StaticKVCache::reserve(std::int64_t count) {
  if (!k_.defined()) return {};
  require_room(count);
  return ReservedKeys{.k = k_, .v = v_};
}

void StaticKVCache::crop(std::int64_t seqlen) {
  seqlen_ = cropped_length(seqlen_, seqlen);
}

void StaticKVCache::select(std::span<const std::int64_t> rows) {
  check_rows(rows, batch());
  if (!k_.defined()) return;
  select_rows(k_, rows, seqlen_);
  select_rows(v_, rows, seqlen_);
}

void StaticKVCache::reset() {
  seqlen_ = 0;
}

// ---- sliding -----------------------------------------------------------------------------------

SlidingKVCache::SlidingKVCache(std::int64_t window) : window_(window) {
  check(window > 0, "[SlidingKVCache] window ({}) must be positive", window);
}

CachedKeys SlidingKVCache::append(const TensorView& k, const TensorView& v) {
  check_append(k, v, batch(), k_, v_);
  if (!k_.defined()) {
    k_ = with_capacity(k, k.size(0), window_);
    v_ = with_capacity(v, v.size(0), window_);
  }
  if (k.size(1) == 1) return append_one(k, v);

  const std::int64_t kept = std::min(seqlen_, window_ - 1);
  CachedKeys keys{.k = k, .v = v, .seqlen = kept + k.size(1)};
  if (kept > 0) {
    const CachedKeys old{
        .k = k_, .v = v_, .seqlen = kept, .first_slot = (seqlen_ - kept) % window_};
    const OrderedKeys before = in_order(old);
    k_staging_ = with_capacity(k, k.size(0), keys.seqlen);
    v_staging_ = with_capacity(v, v.size(0), keys.seqlen);
    write_slots(k_staging_, 0, before.k);
    write_slots(v_staging_, 0, before.v);
    write_slots(k_staging_, kept, k);
    write_slots(v_staging_, kept, v);
    keys.k = k_staging_;
    keys.v = v_staging_;
  }
  store_last(k, v);
  return keys;
}

CachedKeys SlidingKVCache::append_one(const TensorView& k, const TensorView& v) {
  store_last(k, v);
  return {.k = k_,
          .v = v_,
          .seqlen = std::min(seqlen_, window_),
          .first_slot = seqlen_ > window_ ? seqlen_ % window_ : 0};
}

// The last tokens of k and v into their slots; counts all of them.
void SlidingKVCache::store_last(const TensorView& k, const TensorView& v) {
  const std::int64_t added = k.size(1);
  for (std::int64_t i = std::max<std::int64_t>(0, added - window_); i < added;) {
    const std::int64_t slot = (seqlen_ + i) % window_;
    const std::int64_t run = std::min(added - i, window_ - slot);
    write_slots(k_, slot, k.slice(1, i, i + run));
    write_slots(v_, slot, v.slice(1, i, i + run));
    i += run;
  }
  seqlen_ += added;
}

void SlidingKVCache::crop(std::int64_t seqlen) {
  const std::int64_t length = cropped_length(seqlen_, seqlen);
  check(length == seqlen_ || seqlen_ <= window_,
        "[SlidingKVCache::crop] {} tokens have already dropped out of the window ({}), so the "
        "cache cannot go back from {} to {}",
        seqlen_ - window_, window_, seqlen_, length);
  seqlen_ = length;
}

void SlidingKVCache::select(std::span<const std::int64_t> rows) {
  check_rows(rows, batch());
  if (!k_.defined()) return;
  select_rows(k_, rows, std::min(seqlen_, window_));
  select_rows(v_, rows, std::min(seqlen_, window_));
}

void SlidingKVCache::reset() {
  seqlen_ = 0;
}

// ---- all layers --------------------------------------------------------------------------------

KVCaches KVCaches::create(std::int64_t num_layers,
                          const std::function<std::unique_ptr<KVCache>(std::int64_t layer)>& make) {
  KVCaches caches;
  for (std::int64_t layer = 0; layer < num_layers; ++layer)
    caches.layers.push_back(make(layer));
  return caches;
}

bool KVCaches::reserve(std::int64_t count) {
  return std::ranges::all_of(layers,
                             [&](const auto& layer) { return layer->reserve(count).has_value(); });
}
void KVCaches::advance(std::int64_t count) {
  for (const auto& layer : layers)
    layer->advance(count);
}
void KVCaches::crop(std::int64_t seqlen) {
  for (const auto& layer : layers)
    layer->crop(seqlen);
}
void KVCaches::select(std::span<const std::int64_t> rows) {
  for (const auto& layer : layers)
    layer->select(rows);
}
void KVCaches::reorder(std::span<const std::int64_t> rows) {
  for (const auto& layer : layers)
    layer->reorder(rows);
}
void KVCaches::repeat(std::int64_t times) {
  for (const auto& layer : layers)
    layer->repeat(times);
}
void KVCaches::reset() {
  for (const auto& layer : layers)
    layer->reset();
}

}  // namespace flashmha::nn
