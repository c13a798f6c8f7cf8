// The paged cache: rows own lists of pages; rows that were selected from one row share its pages
// until one of them writes.
#include <algorithm>

#include "flashmha/kv_cache.h"
#include "nn/cache_rules.h"

namespace flashmha::nn {

PagedKVCache::PagedKVCache(std::int64_t page_size, std::int64_t max_pages)
    : page_size_(page_size), max_pages_(max_pages) {
  check(page_size > 0, "[PagedKVCache] page_size ({}) must be positive", page_size);
  check(max_pages >= 0, "[PagedKVCache] max_pages ({}) must not be negative", max_pages);
}

std::int64_t PagedKVCache::num_pages_used() const {
  return static_cast<std::int64_t>(references_.size() - free_pages_.size());
}

CachedKeys PagedKVCache::append(const TensorView& k, const TensorView& v) {
  check_append(k, v, batch(), k_pages_, v_pages_);
  if (tables_.empty()) tables_.resize(static_cast<std::size_t>(k.size(0)));
  reserve_pages(pages_needed(k.size(1)), k, v);
  extend_rows(k.size(1));
  write(k_pages_, k);
  write(v_pages_, v);
  seqlen_ += k.size(1);
  write_block_table();
  return {.k = k_pages_, .v = v_pages_, .block_table = block_table_, .seqlen = seqlen_};
}

// True if the next token goes into a page that other rows read, too.
bool PagedKVCache::last_page_is_shared(const std::vector<std::int32_t>& table) const {
  return seqlen_ % page_size_ != 0 && references_[static_cast<std::size_t>(table.back())] > 1;
}

// An upper bound: of rows that share their last page, the last to write may keep it.
std::int64_t PagedKVCache::pages_needed(std::int64_t seqlen_new) const {
  std::int64_t needed = 0;
  for (const auto& table : tables_) {
    needed += pages_for(seqlen_ + seqlen_new) - static_cast<std::int64_t>(table.size());
    if (seqlen_new > 0) needed += last_page_is_shared(table);
  }
  return needed;
}

// Grows the pool until `needed` pages are free.
void PagedKVCache::reserve_pages(std::int64_t needed, const TensorView& k, const TensorView& v) {
  const auto num_free = static_cast<std::int64_t>(free_pages_.size());
  const auto num_pages = static_cast<std::int64_t>(references_.size());
  check(max_pages_ == 0 || num_pages - num_free + needed <= max_pages_,
        "[PagedKVCache::append] needs {} more pages of {} tokens; {} of {} are in use", needed,
        page_size_, num_pages - num_free, max_pages_);
  if (needed <= num_free && k_pages_.defined()) return;
  std::int64_t grown = std::max(num_pages - num_free + needed, 2 * num_pages);
  if (max_pages_ > 0) grown = std::min(grown, max_pages_);
  const auto grow = [&](Tensor& pages, const TensorView& like) {
    Tensor larger =
        Tensor::empty({grown, page_size_, like.size(2), like.size(3)}, like.dtype, like.device);
    if (num_pages > 0) copy(pages, larger.view().slice(0, 0, num_pages));
    pages = std::move(larger);
  };
  grow(k_pages_, k);
  grow(v_pages_, v);
  references_.resize(static_cast<std::size_t>(grown));
  for (std::int64_t page = grown - 1; page >= num_pages; --page) {
    free_pages_.push_back(static_cast<std::int32_t>(page));
  }
}

std::int32_t PagedKVCache::allocate_page() {
  const std::int32_t page = free_pages_.back();
  free_pages_.pop_back();
  references_[static_cast<std::size_t>(page)] = 1;
  return page;
}

void PagedKVCache::release_page(std::int32_t page) {
  if (--references_[static_cast<std::size_t>(page)] == 0) free_pages_.push_back(page);
}

// Every row gets pages for the new tokens that no other row reads.
void PagedKVCache::extend_rows(std::int64_t seqlen_new) {
  const std::int64_t filled = seqlen_ % page_size_;
  for (auto& table : tables_) {
    if (seqlen_new > 0 && !table.empty() && last_page_is_shared(table)) {
      const std::int32_t own = allocate_page();
      for (const Tensor* pages : {&k_pages_, &v_pages_}) {
        copy(pages->view().select(0, table.back()).slice(0, 0, filled),
             pages->view().select(0, own).slice(0, 0, filled));
      }
      release_page(table.back());
      table.back() = own;
    }
    while (static_cast<std::int64_t>(table.size()) < pages_for(seqlen_ + seqlen_new)) {
      table.push_back(allocate_page());
    }
  }
}

// x [batch, seqlen_new, ...] to the positions from seqlen_ on.
void PagedKVCache::write(const TensorView& pages, const TensorView& x) const {
  for (std::int64_t b = 0; b < x.size(0); ++b) {
    const auto& table = tables_[static_cast<std::size_t>(b)];
    for (std::int64_t i = 0; i < x.size(1);) {
      const std::int64_t position = seqlen_ + i;
      const std::int64_t slot = position % page_size_;
      const std::int64_t run = std::min(x.size(1) - i, page_size_ - slot);
      const std::int32_t page = table[static_cast<std::size_t>(position / page_size_)];
      copy(x.select(0, b).slice(0, i, i + run), pages.select(0, page).slice(0, slot, slot + run));
      i += run;
    }
  }
}

void PagedKVCache::write_block_table() {
  const std::int64_t columns = std::max<std::int64_t>(1, pages_for(seqlen_));
  block_table_ = Tensor::zeros({batch(), columns}, DType::int32);
  for (std::int64_t b = 0; b < batch(); ++b) {
    const auto& table = tables_[static_cast<std::size_t>(b)];
    std::copy(table.begin(), table.end(), block_table_.as<std::int32_t>() + b * columns);
  }
}

void PagedKVCache::crop(std::int64_t seqlen) {
  seqlen_ = cropped_length(seqlen_, seqlen);
  for (auto& table : tables_) {
    while (static_cast<std::int64_t>(table.size()) > pages_for(seqlen_)) {
      release_page(table.back());
      table.pop_back();
    }
  }
}

void PagedKVCache::select(std::span<const std::int64_t> rows) {
  check_rows(rows, batch());
  std::vector<std::vector<std::int32_t>> selected;
  for (const std::int64_t row : rows) {
    selected.push_back(tables_[static_cast<std::size_t>(row)]);
    for (const std::int32_t page : selected.back())
      ++references_[static_cast<std::size_t>(page)];
  }
  tables_.swap(selected);
  for (const auto& table : selected) {
    for (const std::int32_t page : table)
      release_page(page);
  }
}

void PagedKVCache::reset() {
  for (const auto& table : tables_) {
    for (const std::int32_t page : table)
      release_page(page);
  }
  tables_.clear();
  seqlen_ = 0;
}

}  // namespace flashmha::nn
