// The rules of sequences, pages and caches; see rules_test.cpp.
#include <gtest/gtest.h>

#include <limits>

#include "tests/attention/rules.h"

namespace flashmha::tests {
namespace {

Case ragged_spec() {
  Case spec = dense_spec();
  spec.layout = Layout::ragged;
  spec.batch = 3;
  return spec;
}

TEST(B6, rules_of_sequences) {
  const auto set = [](std::vector<std::int64_t> ends) {
    return [ends](AttentionCall& c, Memory& m) {
      c.sequences.cu_seqlens_k = m.indices(ends, {static_cast<std::int64_t>(ends.size())});
    };
  };
  expect_refusals(
      ragged_spec(), "flash_attn_varlen_func",
      {{"falls", set({0, 7, 5, 21}), {"cu_seqlens_k must never fall", "has 7 then 5"}},
       {"does not start at 0", set({1, 7, 14, 21}), {"cu_seqlens_k must start with 0", "got 1"}},
       {"longer than max_seqlen",
        set({0, 7, 15, 22}),
        {"max_seqlen_k (7) must be at least every length", "sequence 1 has 8"}},
       {"beyond the tensor",
        [](auto& c, auto& m) {
          c.sequences.max_seqlen_k = 100;
          c.sequences.cu_seqlens_k = m.indices({0, 7, 14, 40}, {4});
        },
        {"cu_seqlens_k ends at 40, beyond the 21 rows"}},
       {"length", set({0, 7, 14}), {"cu_seqlens_k must be [batch + 1] = [4]", "[3]"}},
       {"no elements",
        [](auto& c, auto& m) { c.sequences.cu_seqlens_q = m.indices({}, {0}); },
        {"cu_seqlens_q needs at least one element"}},
       {"dtype",
        [](auto& c, auto& m) { c.sequences.cu_seqlens_q = m.normal({4}, DType::float32, false); },
        {"cu_seqlens_q must be int32", "float32"}},
       {"rank",
        [](auto& c, auto&) {
          c.sequences.cu_seqlens_k = c.sequences.cu_seqlens_k.reshape({2, 2});
        },
        {"cu_seqlens_k must be [batch + 1]", "[2,2]"}},
       {"one is missing",
        [](auto& c, auto&) { c.sequences.cu_seqlens_k = {}; },
        {"cu_seqlens_k must be given"}},
       {"max_seqlen too small",
        [](auto& c, auto&) { c.sequences.max_seqlen_q = 4; },
        {"max_seqlen_q (4) must be at least every length", "has 5"}},
       {"max_seqlen negative",
        [](auto& c, auto&) { c.sequences.max_seqlen_k = -1; },
        {"max_seqlen_k must not be negative", "-1"}},
       {"seqused too long",
        [](auto& c, auto& m) {
          c.sequences.seqused_k = m.indices({7, 8, 7}, {3});
        },
        {"seqused_k must lie within each sequence", "8 of 7"}},
       {"seqused negative",
        [](auto& c, auto& m) {
          c.sequences.seqused_q = m.indices({-1, 5, 5}, {3});
        },
        {"seqused_q", "-1"}},
       {"seqused shape",
        [](auto& c, auto& m) {
          c.sequences.seqused_q = m.indices({5, 5}, {2});
        },
        {"seqused_q must be [batch] = [3]", "[2]"}},
       {"device",
        [](auto& c, auto&) {
          c.sequences.cu_seqlens_q.device = {DeviceType::cuda, 0};
        },
        {"cu_seqlens_q must be on cpu", "cuda:0"}}});
}

TEST(B5, rules_of_pages) {
  Case spec = ragged_spec();
  spec.layout = Layout::ragged_paged;
  spec.page_size = 4;
  const auto table = [](std::int64_t entry) {
    return [entry](AttentionCall& c, Memory&) {
      c.sequences.block_table.as<std::int32_t>()[3] = static_cast<std::int32_t>(entry);
    };
  };
  expect_refusals(
      spec, "flash_attn_varlen_func",
      {{"page out of range", table(1000), {"block_table[1, 1] = 1000 is not one of the 8 pages"}},
       {"negative page", table(-1), {"block_table[1, 1] = -1"}},
       {"too few pages",
        [](auto& c, auto&) { c.sequences.block_table = c.sequences.block_table.slice(1, 0, 1); },
        {"block_table has 1 pages a row", "need 2 pages of 4"}},
       {"rows",
        [](auto& c, auto&) { c.sequences.block_table = c.sequences.block_table.slice(0, 0, 2); },
        {"block_table must be [batch, max_pages] = [3,2]", "[2,2]"}},
       {"dtype",
        [](auto& c, auto& m) {
          c.sequences.block_table = m.normal({3, 2}, DType::float32, false);
        },
        {"block_table must be int32"}},
       {"rank",
        [](auto& c, auto&) { c.sequences.block_table = c.sequences.block_table.select(0, 0); },
        {"block_table must be [batch, max_pages]"}},
       {"keys are not pages",
        [](auto& c, auto&) { c.k = c.k.select(0, 0); },
        {"k must be [num_pages, page_size, num_heads_kv, head_dim]"}},
       {"empty pages",
        [](auto& c, auto&) {
          c.k = c.k.slice(1, 0, 0);
          c.v = c.v.slice(1, 0, 0);
        },
        {"pages must hold at least one key"}}});
  Case dense = dense_spec();
  expect_refusals(dense, "flash_attn_func",
                  {{"pages without lengths",
                    [](auto& c, auto& m) {
                      c.sequences.block_table = m.indices({0, 1}, {2, 1});
                    },
                    {"block_table needs cu_seqlens_q and cu_seqlens_k"}}});
}

TEST(B4, rules_of_caches) {
  Case spec = dense_spec();
  spec.layout = Layout::cache;
  spec.seqlen_k = 20;
  spec.seqlen_new = 3;
  spec.rotary_dim = 8;
  spec.batch_idx = spec.leftpad = spec.positions = true;
  expect_refusals(
      spec, "flash_attn_with_kvcache",
      {{"beyond the capacity",
        [](auto& c, auto&) { c.cache.cache_seqlens.template as<std::int32_t>()[1] = 18; },
        {"cache_seqlens[1] (18) + seqlen_new (3)", "20"}},
       {"negative length",
        [](auto& c, auto&) { c.cache.cache_seqlens.template as<std::int32_t>()[0] = -4; },
        {"cache_seqlens[0] (-4)"}},
       {"length overflows",
        [](auto& c, auto&) {
          c.cache.cache_seqlens.template as<std::int32_t>()[0] =
              std::numeric_limits<std::int32_t>::max();
        },
        {"cache_seqlens[0] (2147483647)"}},
       {"shape of lengths",
        [](auto& c, auto& m) { c.cache.cache_seqlens = m.indices({4}, {1}); },
        {"cache_seqlens must be [batch] = [2]", "[1]"}},
       {"append without lengths",
        [](auto& c, auto&) { c.cache.cache_seqlens = {}; },
        {"cache_seqlens must be given to append"}},
       {"append without v",
        [](auto& c, auto&) { c.append.v = {}; },
        {"append.k and append.v must be given together"}},
       {"append without k",
        [](auto& c, auto&) { c.append.k = {}; },
        {"append.k and append.v must be given together"}},
       {"shape of appended keys",
        [](auto& c, auto&) { c.append.k = c.append.k.slice(2, 0, 1); },
        {"append.k must be", "[2,3,2,16]", "[2,3,1,16]"}},
       {"shape of appended values",
        [](auto& c, auto&) { c.append.v = c.append.v.slice(1, 0, 2); },
        {"append.v must be", "[2,2,2,16]"}},
       {"left padding beyond the keys",
        [](auto& c, auto&) { c.cache.cache_leftpad.template as<std::int32_t>()[1] = 21; },
        {"cache_leftpad[1] (21)"}},
       {"negative left padding",
        [](auto& c, auto&) { c.cache.cache_leftpad.template as<std::int32_t>()[0] = -1; },
        {"cache_leftpad[0] (-1)"}},
       {"row of the cache",
        [](auto& c, auto&) { c.cache.cache_batch_idx.template as<std::int32_t>()[0] = 9; },
        {"cache_batch_idx[0] = 9 is not one of the 4 rows"}},
       {"rows repeat",
        [](auto& c, auto& m) {
          c.cache.cache_batch_idx = m.indices({1, 1}, {2});
        },
        {"cache_batch_idx must not repeat"}},
       {"batch of the cache",
        [](auto& c, auto&) { c.cache.cache_batch_idx = {}; },
        {"q's batch (2)", "[4,20,2,16]"}},
       {"rotary table too short",
        [](auto& c, auto&) {
          c.append.rotary.cos = c.append.rotary.cos.slice(0, 0, 2);
          c.append.rotary.sin = c.append.rotary.sin.slice(0, 0, 2);
          c.append.rotary.positions.template as<std::int32_t>()[0] = 2;
        },
        {"rotary tables have 2 positions"}},
       {"negative position",
        [](auto& c, auto&) { c.append.rotary.positions.template as<std::int32_t>()[1] = -1; },
        {"rotary tables", "position -1"}},
       {"shape of positions",
        [](auto& c, auto&) {
          c.append.rotary.positions = c.append.rotary.positions.slice(1, 0, 2);
        },
        {"rotary.positions must be", "[2,5]", "[2,2]"}},
       {"sin without cos",
        [](auto& c, auto&) { c.append.rotary.cos = {}; },
        {"rotary.cos and rotary.sin must be given together"}},
       {"cos without sin", [](auto& c, auto&) { c.append.rotary.sin = {}; }, {"rotary.sin"}},
       {"rotary_dim",
        [](auto& c, auto& m) {
          c.append.rotary.cos = m.normal({30, 9}, DType::float32, false);
          c.append.rotary.sin = c.append.rotary.cos;
        },
        {"rotary_dim (18) must not exceed head_dim (16)"}},
       {"dtype of the table",
        [](auto& c, auto& m) {
          c.append.rotary.cos = m.normal(c.append.rotary.cos.shape, DType::float16, false);
        },
        {"rotary tables must be float32", "float16"}},
       {"num_splits",
        [](auto& c, auto&) { c.append.num_splits = -1; },
        {"num_splits must not be negative", "-1"}},
       {"dropout",
        [](auto& c, auto&) { c.options.dropout.p = 0.5f; },
        {"dropout is not defined for attention to a cache", "0.5"}},
       {"rank of the cache",
        [](auto& c, auto&) { c.cache.k = c.cache.k.select(0, 0); },
        {"cache.k must be [batch, capacity, num_heads_kv, head_dim]"}},
       {"values of the cache",
        [](auto& c, auto&) { c.cache.v = c.cache.v.slice(1, 0, 19); },
        {"cache.v must have the sizes of cache.k"}},
       {"cache and cu_seqlens",
        [](auto& c, auto& m) { c.sequences.cu_seqlens_q = m.indices({0}, {1}); },
        {"a cache and cu_seqlens exclude each other", "float32 [4,20,2,16]"}},
       {"rows of the cache share memory",
        [](auto& c, auto&) { c.cache.k = c.cache.k.slice(0, 0, 1).broadcast_to(c.cache.k.shape); },
        {"cache.k must not overlap itself", "with strides [0,32,16,1]"}},
       {"slots of the cache share memory",
        [](auto& c, auto&) { c.cache.v = c.cache.v.slice(1, 0, 1).broadcast_to(c.cache.v.shape); },
        {"cache.v must not overlap itself", "with strides [640,0,16,1]"}}});
  spec.layout = Layout::cache_paged;
  spec.batch_idx = false;
  expect_refusals(spec, "flash_attn_with_kvcache",
                  {{"batch_idx with pages",
                    [](auto& c, auto& m) {
                      c.cache.cache_batch_idx = m.indices({0, 1}, {2});
                    },
                    {"cache_batch_idx has no meaning with a block_table"}},
                   {"page out of range",
                    [](auto& c, auto&) { c.cache.block_table.template as<std::int32_t>()[0] = 77; },
                    {"block_table[0, 0] = 77"}}});
  // Nothing is written: one prefix may serve all rows.
  spec.layout = Layout::cache;
  spec.seqlen_new = 0;
  Instance instance(spec, test_seed());
  KVCacheView& cache = instance.call.cache;
  cache.k = cache.k.slice(0, 0, 1).broadcast_to(cache.k.shape);
  cache.v = cache.v.slice(0, 0, 1).broadcast_to(cache.v.shape);
  EXPECT_NO_THROW(make_problem(instance.call));
}

}  // namespace
}  // namespace flashmha::tests
