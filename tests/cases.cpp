#include "tests/cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <utility>

namespace flashmha::tests {
namespace {

constexpr std::int64_t kHeadDims[] = {1, 8, 32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256};

struct HeadCounts {
  std::int64_t q, kv;
};
constexpr HeadCounts kHeadCounts[] = {{6, 6}, {6, 1}, {6, 2}};  // MHA, MQA, GQA

// FlashAttention-2's pairs (tests/test_flash_attn.py), the longest ones shortened: the
// specification that they are compared with takes quadratic time on one core.
constexpr std::pair<std::int64_t, std::int64_t> kSeqlens[] = {
    {113, 203}, {128, 217}, {113, 211}, {108, 256}, {256, 384}, {384, 256}, {239, 1},
    {1, 239},   {3, 399},   {127, 288}, {127, 513}, {257, 257}, {255, 256}, {256, 255},
};

constexpr DType kStorage[] = {DType::float32, DType::bfloat16, DType::float16};

using Random = std::mt19937_64;

std::int64_t uniform(Random& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}
bool chance(Random& random, double p) {
  return std::bernoulli_distribution(p)(random);
}
template <class T, std::size_t N>
T pick(Random& random, const T (&values)[N]) {
  return values[static_cast<std::size_t>(uniform(random, 0, N - 1))];
}

// Switches on each option of the scores with probability p.
void draw_options(Random& random, Case& c, double p) {
  c.causal = chance(random, 0.4);
  if (chance(random, p)) c.window_left = uniform(random, 0, std::max<std::int64_t>(c.seqlen_k, 1));
  if (chance(random, p)) c.window_right = uniform(random, 0, std::max<std::int64_t>(c.seqlen_k, 1));
  if (chance(random, p)) c.align = MaskAlign::top_left;
  if (chance(random, p)) c.softcap = chance(random, 0.5) ? 5.0f : 30.0f;
  if (chance(random, p) && !is_cache(c)) c.dropout = 0.17f;
  if (chance(random, p)) c.softmax_scale = 0.3f;
  c.alibi = chance(random, p);
  c.bias = {chance(random, p), static_cast<unsigned>(uniform(random, 0, 15))};
  c.mask = {chance(random, p), static_cast<unsigned>(uniform(random, 0, 15))};
  c.narrow_extras = chance(random, 0.5);
  c.sinks = chance(random, p);
  c.dlse = chance(random, 0.5);
  c.strided = chance(random, 0.5);
}

void draw_layout(Random& random, Case& c) {
  constexpr Lengths kLengths[] = {Lengths::equal, Lengths::random, Lengths::some_zero};
  constexpr std::int64_t kPageSizes[] = {1, 16, 48, 256};
  c.lengths_q = pick(random, kLengths);
  c.lengths_k = pick(random, kLengths);
  c.page_size = pick(random, kPageSizes);
  c.seqused = is_ragged(c) && chance(random, 0.3);
  if (!is_cache(c)) return;
  if (chance(random, 0.6)) {
    c.seqlen_new = std::min(c.seqlen_k, chance(random, 0.5) ? c.seqlen_q : uniform(random, 1, 9));
  }
  if (chance(random, 0.5)) {
    c.rotary_dim = chance(random, 0.5) ? c.head_dim / 2 * 2 : c.head_dim / 4 * 2;
  }
  c.rotary_interleaved = chance(random, 0.5);
  c.positions = chance(random, 0.3);
  c.leftpad = chance(random, 0.4);
  c.batch_idx = c.layout == Layout::cache && chance(random, 0.4);
  constexpr int kSplits[] = {0, 1, 2, 3, 7};
  c.num_splits = pick(random, kSplits);
}

// One or two of each kind of problem.
void add_smoke(std::vector<Case>& list) {
  for (const DType dtype : kStorage) {
    const Case base{.dtype = dtype, .seqlen_q = 67, .seqlen_k = 101, .tags = kSmoke};
    const auto add = [&](auto change) {
      list.push_back(base);
      change(list.back());
    };
    add([](Case&) {});
    add([](Case& c) { c.causal = true; });
    add([](Case& c) { c.causal = c.strided = true, c.num_heads_kv = 2, c.head_dim = 40; });
    add([](Case& c) { c.window_left = 13, c.window_right = 5, c.head_dim_v = 96; });
    add([](Case& c) { c.softcap = 15.0f, c.dropout = 0.17f, c.dlse = true; });
    add([](Case& c) { c.alibi = c.causal = true, c.num_heads_kv = 1; });
    add([](Case& c) { c.bias = {true, kHead | kRow | kColumn}, c.dlse = true; });
    add([](Case& c) { c.mask = {true, kBatch | kRow | kColumn}, c.sinks = true; });
    add([](Case& c) { c.layout = Layout::ragged, c.lengths_q = c.lengths_k = Lengths::random; });
    add([](Case& c) {
      c.layout = Layout::ragged, c.lengths_q = c.lengths_k = Lengths::some_zero;
      c.causal = c.seqused = true;
    });
    add([](Case& c) { c.layout = Layout::ragged_paged, c.lengths_k = Lengths::random; });
    add([](Case& c) {
      c.layout = Layout::cache, c.seqlen_q = c.seqlen_new = 1, c.num_heads_kv = 2;
      c.lengths_k = Lengths::random, c.rotary_dim = 32;
    });
    add([](Case& c) {
      c.layout = Layout::cache, c.seqlen_q = c.seqlen_new = 5, c.causal = c.leftpad = true;
      c.lengths_k = Lengths::random, c.rotary_dim = 64, c.batch_idx = true, c.num_splits = 3;
    });
    add([](Case& c) {
      c.layout = Layout::cache_paged, c.seqlen_q = 1, c.page_size = 16;
      c.lengths_k = Lengths::random, c.num_splits = 2;
    });
  }
}

// Lengths 0 and 1 and rows that see nothing, alone and under every option.
void add_degenerate(std::vector<Case>& list) {
  constexpr std::pair<std::int64_t, std::int64_t> kPairs[] = {
      {0, 0}, {0, 1}, {1, 0}, {1, 1}, {5, 0}, {0, 5}, {5, 1}, {1, 5}, {70, 3}};
  int n = 0;
  const auto add = [&](Case c) {
    c.dtype = kStorage[n++ % 3];
    c.tags = kDegenerate;
    c.head_dim = 16;
    list.push_back(c);
    c.sinks = c.dlse = true;
    c.bias = {true, kHead | kColumn};
    c.softcap = 5.0f;
    c.alibi = true;
    list.push_back(c);
  };
  for (const auto& [seqlen_q, seqlen_k] : kPairs) {
    for (const bool causal : {false, true}) {
      const Case dense{
          .seqlen_q = seqlen_q, .seqlen_k = seqlen_k, .num_heads_kv = 2, .causal = causal};
      add(dense);
      Case ragged = dense;
      ragged.layout = Layout::ragged;
      ragged.batch = 4;
      ragged.lengths_q = ragged.lengths_k = Lengths::some_zero;
      add(ragged);
      Case cache = dense;
      cache.layout = n % 2 == 0 ? Layout::cache : Layout::cache_paged;
      cache.lengths_k = Lengths::some_zero;
      cache.page_size = 1;
      if (seqlen_k > 0) cache.seqlen_new = 1;
      add(cache);
    }
  }
  // Every sequence empty; a mask that hides everything; windows that lie outside the keys.
  add({.layout = Layout::ragged, .lengths_q = Lengths::all_zero});
  add({.layout = Layout::ragged, .lengths_k = Lengths::all_zero});
  add({.layout = Layout::ragged_paged, .lengths_k = Lengths::all_zero, .page_size = 16});
  add({.layout = Layout::cache, .seqlen_q = 3, .lengths_k = Lengths::all_zero});
  add({.seqlen_q = 40, .seqlen_k = 9, .causal = true, .mask = {true, kNowhere}});
  add({.mask = {true, kBatch}});
  add({.seqlen_q = 90, .seqlen_k = 20, .window_left = 3, .window_right = 0});
  add({.seqlen_q = 90, .seqlen_k = 20, .window_left = 3, .align = MaskAlign::top_left});
  add({.batch = 0});
  add({.batch = 1, .seqlen_q = 1, .seqlen_k = 1, .num_heads_q = 1, .num_heads_kv = 1});
}

// Every head_dim, pair of lengths, way of sharing heads and option of FlashAttention-2's tests. The
// full cross product has 10^6 problems; each pair of (head_dim, lengths) is drawn with other
// options each time, from a fixed seed, so that every two options meet often.
void add_full(std::vector<Case>& list) {
  Random random(20240229);
  for (const std::int64_t head_dim : kHeadDims) {
    for (const auto& [seqlen_q, seqlen_k] : kSeqlens) {
      Case c{.tags = kFull};
      constexpr Layout kLayouts[] = {Layout::dense, Layout::dense,        Layout::ragged,
                                     Layout::cache, Layout::ragged_paged, Layout::cache_paged};
      c.layout = pick(random, kLayouts);
      c.dtype = pick(random, kStorage);
      const HeadCounts heads = pick(random, kHeadCounts);
      c.num_heads_q = heads.q;
      c.num_heads_kv = heads.kv;
      c.seqlen_q = seqlen_q;
      c.seqlen_k = seqlen_k;
      c.head_dim = head_dim;
      if (chance(random, 0.3)) c.head_dim_v = pick(random, kHeadDims);
      draw_layout(random, c);
      draw_options(random, c, 0.25);
      list.push_back(c);
    }
  }
}

// FlashAttention-2's longest caches, with few heads. A sequence with one query is cut into splits:
// an even sixteenth of its keys, of 512 keys at least and 2048 at most. Then more packed keys and
// values than the CPU backend's forward holds at a time: 64 MiB, 256 blocks of 128 keys of this
// head_dim. A few keys of each are real, so that the specification is through in seconds.
void add_long(std::vector<Case>& list) {
  const Case cache{.layout = Layout::cache,
                   .dtype = DType::bfloat16,
                   .batch = 1,
                   .seqlen_q = 1,
                   .num_heads_q = 2,
                   .num_heads_kv = 1,
                   .head_dim = 64,
                   .tags = kLong};
  const auto add = [&](Case c, auto change) {
    change(c);
    list.push_back(c);
  };
  add(cache, [](Case& c) { c.seqlen_k = 1200, c.dtype = DType::float32, c.sinks = true; });
  add(cache,
      [](Case& c) { c.seqlen_q = 16, c.seqlen_k = 20000, c.num_heads_q = 1, c.causal = true; });
  add(cache, [](Case& c) {
    c.batch = 2, c.seqlen_q = 16, c.seqlen_k = 20000, c.dtype = DType::float16;
    c.lengths_k = Lengths::random, c.causal = c.leftpad = true;
  });
  add(cache, [](Case& c) { c.seqlen_k = 131072, c.head_dim = 32; });
  add(cache, [](Case& c) {
    c.layout = Layout::cache_paged, c.page_size = 256, c.seqlen_k = 131072, c.head_dim = 32;
    c.seqlen_new = 1, c.rotary_dim = 32, c.dtype = DType::float16;
  });
  list.push_back({.dtype = DType::float32,
                  .batch = 6,
                  .seqlen_q = 17,
                  .seqlen_k = 21,
                  .num_heads_q = 50,
                  .num_heads_kv = 50,
                  .head_dim = 256,
                  .tags = kLong});
}

std::string varies_text(unsigned varies) {
  std::string text;
  for (const auto& [bit, letter] : {std::pair{kBatch, 'b'}, std::pair{kHead, 'h'},
                                    std::pair{kRow, 'i'}, std::pair{kColumn, 'j'}}) {
    text += (varies & bit) != 0 ? letter : '1';
  }
  return text;
}

}  // namespace

std::string describe(const Case& c) {
  constexpr const char* kLayoutNames[] = {"dense", "ragged", "ragged_paged", "cache",
                                          "cache_paged"};
  constexpr const char* kLengthNames[] = {"equal", "random", "some_zero", "all_zero"};
  const Case standard;
  std::string text =
      fmt::format("{} {} batch={} seqlens={}x{} heads={}/{} head_dim={}",
                  kLayoutNames[static_cast<int>(c.layout)], dtype_name(c.dtype), c.batch,
                  c.seqlen_q, c.seqlen_k, c.num_heads_q, c.num_heads_kv, c.head_dim);
  const auto add = [&]<class T>(const char* name, T value, T unless) {
    if (value == unless) return;
    if constexpr (std::is_same_v<T, bool>) {
      text += fmt::format(" {}", name);
    } else {
      text += fmt::format(" {}={}", name, value);
    }
  };
  add("head_dim_v", value_dim(c), c.head_dim);
  add("causal", c.causal, false);
  add("window_left", c.window_left, standard.window_left);
  add("window_right", c.window_right, standard.window_right);
  add("top_left", c.align == MaskAlign::top_left, false);
  add("softcap", c.softcap, 0.0f);
  add("dropout", c.dropout, 0.0f);
  add("softmax_scale", c.softmax_scale, 0.0f);
  add("alibi", c.alibi, false);
  if (c.bias.given) text += " bias=" + varies_text(c.bias.varies);
  if (c.mask.given) text += " mask=" + varies_text(c.mask.varies);
  add("narrow_extras", c.narrow_extras, false);
  add("sinks", c.sinks, false);
  add("dlse", c.dlse && has_backward(c), false);
  if (is_ragged(c))
    text += fmt::format(" lengths_q={}", kLengthNames[static_cast<int>(c.lengths_q)]);
  if (is_ragged(c) || is_cache(c)) {
    text += fmt::format(" lengths_k={}", kLengthNames[static_cast<int>(c.lengths_k)]);
  }
  if (is_paged(c)) text += fmt::format(" page_size={}", c.page_size);
  if (is_cache(c)) {
    add("seqlen_new", c.seqlen_new, standard.seqlen_new);
    add("rotary_dim", c.rotary_dim, standard.rotary_dim);
    add("interleaved", c.rotary_interleaved && c.rotary_dim > 0, false);
    add("positions", c.positions && c.rotary_dim > 0, false);
    add("leftpad", c.leftpad, false);
    add("batch_idx", c.batch_idx, false);
    add("num_splits", c.num_splits, 0);
  }
  add("seqused", c.seqused, false);
  add("strided", c.strided, false);
  return text;
}

std::vector<Case> cases(unsigned tags) {
  std::vector<Case> list;
  if (tags & kSmoke) add_smoke(list);
  if (tags & kDegenerate) add_degenerate(list);
  if (tags & kFull) add_full(list);
  if (tags & kLong) add_long(list);
  return list;
}

Case random_case(std::uint64_t seed) {
  Random random(seed);
  Case c{.tags = kFull};
  c.layout = static_cast<Layout>(uniform(random, 0, 4));
  c.dtype = pick(random, kStorage);
  c.batch = uniform(random, 1, 4);
  c.num_heads_kv = uniform(random, 1, 3);
  c.num_heads_q = c.num_heads_kv * uniform(random, 1, 4);
  c.seqlen_q = chance(random, 0.2) ? uniform(random, 0, 3) : uniform(random, 1, 150);
  c.seqlen_k = chance(random, 0.1) ? uniform(random, 0, 3) : uniform(random, 1, 200);
  c.head_dim = chance(random, 0.5) ? pick(random, kHeadDims) : uniform(random, 1, 256);
  if (chance(random, 0.3)) c.head_dim_v = uniform(random, 1, 256);
  draw_layout(random, c);
  draw_options(random, c, 0.3);
  return c;
}

}  // namespace flashmha::tests
