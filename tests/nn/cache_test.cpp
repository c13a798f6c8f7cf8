// Row B8: the four caches hold what was appended, whatever was done in between.
#include "tests/nn/support.h"

namespace flashmha::tests {
namespace {

using nn::KVCache;
using Factory = std::function<std::unique_ptr<KVCache>()>;

struct Kind {
  const char* name;
  Factory make;
};

const Kind kUnbounded[] = {
    {"dynamic", [] { return std::make_unique<nn::DynamicKVCache>(); }},
    {"static", [] { return std::make_unique<nn::StaticKVCache>(100); }},
    {"page of 1", [] { return std::make_unique<nn::PagedKVCache>(1); }},
    {"page of 3", [] { return std::make_unique<nn::PagedKVCache>(3); }},
    {"page of 256", [] { return std::make_unique<nn::PagedKVCache>(256); }},
    {"wide sliding", [] { return std::make_unique<nn::SlidingKVCache>(100); }},
};

// The tokens that a cache ought to hold, kept as tensors [1, 1, heads, dim] per row.
struct Model {
  std::vector<std::vector<Tensor>> rows;

  void append(const TensorView& k) {
    rows.resize(static_cast<std::size_t>(k.size(0)));
    for (std::int64_t b = 0; b < k.size(0); ++b) {
      for (std::int64_t i = 0; i < k.size(1); ++i) {
        rows[static_cast<std::size_t>(b)].push_back(clone(k.select(0, b).select(0, i)));
      }
    }
  }
  void select(const std::vector<std::int64_t>& from) {
    std::vector<std::vector<Tensor>> selected;
    for (const std::int64_t row : from) {
      selected.emplace_back();
      for (const Tensor& token : rows[static_cast<std::size_t>(row)]) {
        selected.back().push_back(clone(token));
      }
    }
    rows = std::move(selected);
  }
  void crop(std::size_t length) {
    for (auto& row : rows)
      row.resize(length);
  }
  // Compares with the newest tokens.
  void expect(const TensorView& k, const std::string& what) const {
    ASSERT_EQ(k.size(0), static_cast<std::int64_t>(rows.size())) << what;
    for (std::size_t b = 0; b < rows.size(); ++b) {
      const std::size_t skipped = rows[b].size() - static_cast<std::size_t>(k.size(1));
      for (std::int64_t i = 0; i < k.size(1); ++i) {
        expect_same_bits(k.select(0, static_cast<std::int64_t>(b)).select(0, i),
                         rows[b][skipped + static_cast<std::size_t>(i)], what);
      }
    }
  }
};

// A cache and its models; every append checks everything.
struct Checked {
  std::unique_ptr<KVCache> cache;
  Random& random;
  Model keys{}, values{};

  void append(std::int64_t batch, std::int64_t count, std::int64_t expected_held = -1) {
    const Tensor k = random.normal({batch, count, 2, 4}, DType::bfloat16);
    const Tensor v = random.normal({batch, count, 2, 6}, DType::bfloat16);
    keys.append(k);
    values.append(v);
    const nn::OrderedKeys held = nn::in_order(cache->append(k, v));
    const auto total = static_cast<std::int64_t>(keys.rows[0].size());
    EXPECT_EQ(cache->seqlen(), total);
    EXPECT_EQ(cache->batch(), batch);
    EXPECT_EQ(held.k.size(1), expected_held < 0 ? total : expected_held);
    keys.expect(held.k, "keys");
    values.expect(held.v, "values");
  }
  void select(const std::vector<std::int64_t>& rows) {
    cache->select(rows);
    keys.select(rows);
    values.select(rows);
  }
  void crop(std::int64_t length) {
    cache->crop(length);
    keys.crop(static_cast<std::size_t>(cache->seqlen()));
    values.crop(static_cast<std::size_t>(cache->seqlen()));
  }
};

TEST(B8, append_crop_select_of_every_cache) {
  Random random;
  for (const Kind& kind : kUnbounded) {
    SCOPED_TRACE(kind.name);
    Checked checked{kind.make(), random};
    checked.append(2, 7);
    checked.append(2, 1);
    checked.append(2, 1);
    checked.crop(5);
    checked.append(2, 4);
    checked.crop(-2);
    EXPECT_EQ(checked.cache->seqlen(), 7);
    checked.append(2, 1);
    checked.select({1, 1});  // beam search
    checked.append(2, 1);
    checked.select({0, 1, 1, 0, 0});
    checked.append(5, 3);
    checked.select({4});
    checked.append(1, 2);
  }
}

TEST(B8, random_histories) {
  Random random;
  for (const Kind& kind : kUnbounded) {
    SCOPED_TRACE(kind.name);
    Checked checked{kind.make(), random};
    std::int64_t batch = 3;
    checked.append(batch, 2);
    for (int step = 0; step < 40; ++step) {
      const std::int64_t action = random.below(6);
      if (action == 0 && checked.cache->seqlen() > 1) {
        checked.crop(1 + random.below(checked.cache->seqlen() - 1));
      } else if (action == 1) {
        const std::int64_t next = 1 + random.below(4);
        std::vector<std::int64_t> rows;
        for (std::int64_t b = 0; b < next; ++b)
          rows.push_back(random.below(batch));
        checked.select(rows);
        batch = next;
      }
      checked.append(batch, 1 + random.below(2));
    }
  }
}

TEST(B8, repeat_reorder_reset) {
  Random random;
  for (const Kind& kind : kUnbounded) {
    SCOPED_TRACE(kind.name);
    Checked checked{kind.make(), random};
    checked.append(2, 3);
    checked.cache->repeat(2);
    checked.keys.select({0, 0, 1, 1});
    checked.values.select({0, 0, 1, 1});
    checked.append(4, 1);
    const std::vector<std::int64_t> order{3, 0, 2, 2};
    checked.cache->reorder(order);
    checked.keys.select(order);
    checked.values.select(order);
    checked.append(4, 1);
    expect_error([&] { checked.cache->reorder(std::vector<std::int64_t>{0}); }, {"(4)", "got 1"});
    expect_error([&] { checked.cache->select(std::vector<std::int64_t>{4}); }, {"[0, 4)", "got 4"});
    checked.cache->reset();
    EXPECT_EQ(checked.cache->seqlen(), 0);
  }
}

TEST(B8, sliding_keeps_window_minus_one_and_the_new) {
  Random random;
  for (const std::int64_t window : {1, 4, 5}) {
    Checked checked{std::make_unique<nn::SlidingKVCache>(window), random};
    checked.append(2, 3);  // the first append is seen whole
    for (int i = 0; i < 9; ++i)
      checked.append(2, 1, std::min<std::int64_t>(window, 4 + i));
    checked.append(2, 3, window - 1 + 3);
    checked.append(2, 11, window - 1 + 11);  // longer than the window
    for (int i = 0; i < 3; ++i)
      checked.append(2, 1, window);
    checked.select({1, 0, 1});
    for (int i = 0; i < 3; ++i)
      checked.append(3, 1, window);
    expect_error([&] { checked.cache->crop(-1); }, {"[SlidingKVCache::crop]", "dropped out"});
  }
}

TEST(B8, static_memory_stays_where_it_is) {
  Random random;
  nn::StaticKVCache cache(6);
  const Tensor k = random.normal({2, 2, 1, 4});
  const void* address = cache.append(k, k).k.data;
  const std::vector<std::int64_t> order{1, 0};
  cache.reorder(order);
  EXPECT_EQ(cache.append(k, k).k.data, address);
  cache.append(k, k);
  expect_error([&] { cache.append(k, k); }, {"[StaticKVCache::append]", "capacity (6)", "6 are"});
}

TEST(B8, dynamic_growth_is_geometric) {
  Random random;
  nn::DynamicKVCache cache;
  const Tensor k = random.normal({1, 1, 1, 4});
  std::vector<const void*> addresses;
  for (int i = 0; i < 1000; ++i) {
    const void* address = cache.append(k, k).k.data;
    if (addresses.empty() || address != addresses.back()) addresses.push_back(address);
  }
  EXPECT_LE(addresses.size(), 6u) << "64, 128, ..., 1024";
}

TEST(B8, pages_are_shared_until_written) {
  Random random;
  nn::PagedKVCache cache(4, 7);
  const Tensor prompt = random.normal({1, 10, 1, 4});
  cache.append(prompt, prompt);
  EXPECT_EQ(cache.num_pages_used(), 3);
  cache.repeat(3);
  EXPECT_EQ(cache.num_pages_used(), 3) << "nothing is copied yet";
  const Tensor next = random.normal({3, 1, 1, 4});
  cache.append(next, next);
  EXPECT_EQ(cache.num_pages_used(), 5) << "two of three rows got their own last page";
  const Tensor more = random.normal({3, 2, 1, 4});
  expect_error([&] { cache.append(more, more); },
               {"[PagedKVCache::append]", "3 more pages of 4", "5 of 7"});
  EXPECT_EQ(cache.seqlen(), 11) << "a refused append changes nothing";
  cache.crop(8);
  EXPECT_EQ(cache.num_pages_used(), 2);
}

TEST(B8, mismatched_tensors_are_named) {
  Random random;
  nn::DynamicKVCache cache;
  const Tensor k = random.normal({2, 3, 1, 4});
  cache.append(k, k);
  const Tensor other = random.normal({3, 1, 1, 4});
  expect_error([&] { cache.append(other, other); }, {"[KVCache::append]", "batch 2", "[3,1,1,4]"});
  expect_error([&] { cache.crop(-4); }, {"cannot forget 4 of 3"});
}

}  // namespace
}  // namespace flashmha::tests
