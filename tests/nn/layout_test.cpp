// Row A8: no transposes, neither for the rotary embedding nor for a cache. Tensors are counted, and
// their addresses are looked at, on the way into attention.
#include <functional>
#include <memory>

#include "flashmha/plan.h"
#include "tests/nn/layer_cases.h"

namespace flashmha::tests {
namespace {

constexpr std::int64_t kBatch = 3;
// Lengths, block tables and what allocations are rounded up to: less than one row of keys.
constexpr std::size_t kSmall = 1024;

// Notes what attention is given, and the most bytes that were in use before it and within.
class WatchedLayer : public nn::FlashMultiHeadAttention {
 public:
  using FlashMultiHeadAttention::FlashMultiHeadAttention;

  struct Seen {
    TensorView q;
    nn::CachedKeys keys;
    std::size_t bytes_before = 0;
    std::size_t bytes_within = 0;
  };
  mutable Seen seen;

 protected:
  TensorView attend(const TensorView& q, const nn::CachedKeys& keys,
                    const nn::AttentionInputs& inputs, nn::AttentionSaved& saved) const override {
    seen = {.q = q, .keys = keys, .bytes_before = memory_stats().peak_bytes};
    reset_peak_memory();
    const std::size_t before = memory_stats().current_bytes;
    const TensorView out = FlashMultiHeadAttention::attend(q, keys, inputs, saved);
    seen.bytes_within = memory_stats().peak_bytes - before;
    return out;
  }
};

nn::AttentionConfig config_of(std::int64_t window) {
  nn::AttentionConfig config;
  config.hidden_size = 24;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 64;
  config.sliding_window = window;
  config.rotary = nn::RotaryConfig{};
  return config;
}

// One forward, with what it allocated. Tables of positions exist before.
struct Step {
  nn::AttentionSaved saved;
  WatchedLayer::Seen seen;
  std::size_t bytes_on_the_way = 0;  // at most, from the layer's input to attention

  Step(const WatchedLayer& layer, const TensorView& x, nn::KVCache* cache) {
    layer.rotary->tables(256);
    nn::AttentionInputs inputs;
    inputs.hidden_states = x;
    inputs.cache = cache;
    const std::size_t before = memory_stats().current_bytes;
    reset_peak_memory();
    layer.forward(inputs, &saved);
    seen = layer.seen;
    bytes_on_the_way = seen.bytes_before - before;
  }

  // q, k and v are the projections' own results, rotated where they lie: no other tensor of their
  // size existed.
  void expect_projections_in_place(const WatchedLayer& layer, const TensorView& x) const {
    EXPECT_EQ(seen.q.data, saved.q.view().data);
    EXPECT_TRUE(seen.q.is_contiguous());
    const std::size_t own = saved.q.view().bytes() + saved.k.view().bytes() +
                            saved.v.view().bytes() + saved.positions.view().bytes();
    EXPECT_LT(bytes_on_the_way, own + kSmall);
    const auto rotated = [&](const nn::Linear& projection, const Tensor& heads) {
      const Tensor y = projection.forward(x);
      const TensorView view = y.view().reshape(heads.shape());
      ops::rotary(view, layer.rotary->tables(256), saved.positions, view);
      return clone(view);
    };
    expect_same_bits(saved.q, rotated(layer.q_proj, saved.q), "q");
    expect_same_bits(saved.k, rotated(layer.k_proj, saved.k), "k");
    EXPECT_EQ(to_string(saved.attended.shape), to_string(saved.q.shape()));
    EXPECT_TRUE(saved.attended.is_contiguous());
  }

  // Attention itself allocates its results and its plan's workspace, and no keys.
  void expect_attention_in_place(AttentionCall call) const {
    const Tensor out = Tensor::empty(call.q.shape, call.q.dtype);
    const Tensor lse =
        Tensor::empty({call.q.size(0), call.q.size(2), call.q.size(1)}, DType::float32);
    call.out = out;
    call.lse = lse;
    const std::size_t own =
        out.view().bytes() + lse.view().bytes() + make_plan(call).workspace_bytes;
    EXPECT_LT(seen.bytes_within, own + kSmall);
  }
};

TEST(A8, attention_reads_the_projections_where_they_are) {
  Random random;
  WatchedLayer layer(config_of(0), DType::float32);
  randomise(layer, random);
  const Tensor x = random.normal({kBatch, 50, 24});
  const Step step(layer, x, nullptr);
  step.expect_projections_in_place(layer, x);
  EXPECT_EQ(step.seen.keys.k.data, step.saved.k.view().data);
  EXPECT_EQ(step.seen.keys.v.data, step.saved.v.view().data);
  AttentionCall call{.q = step.saved.q, .k = step.saved.k, .v = step.saved.v};
  call.options.causal = true;
  step.expect_attention_in_place(call);
}

// Steps of one token through a cache that has its memory already.
void expect_cache_in_place(nn::KVCache& cache, std::int64_t window, Random& random) {
  WatchedLayer layer(config_of(window), DType::float32);
  randomise(layer, random);
  const auto tokens = [&](std::int64_t count) { return random.normal({kBatch, count, 24}); };
  const Step prompt(layer, tokens(30), &cache);
  const Step first(layer, tokens(1), &cache);
  for (int i = 0; i < 3; ++i) {
    const Tensor x = tokens(1);
    const Step step(layer, x, &cache);
    step.expect_projections_in_place(layer, x);
    // The cache's memory, the same as before, in the layout of the projections...
    const nn::CachedKeys& keys = step.seen.keys;
    EXPECT_EQ(keys.k.data, first.seen.keys.k.data);
    EXPECT_EQ(keys.v.data, first.seen.keys.v.data);
    EXPECT_TRUE(keys.k.is_contiguous() && keys.v.is_contiguous());
    EXPECT_EQ(keys.k.size(2), 2);
    EXPECT_EQ(keys.k.size(3), 64);
    // ...is what attention reads.
    const Tensor cache_seqlens = Tensor::empty({kBatch}, DType::int32);
    fill(cache_seqlens, static_cast<double>(keys.seqlen));
    AttentionCall call{.q = step.seen.q};
    call.cache = {.k = keys.k, .v = keys.v, .cache_seqlens = cache_seqlens};
    call.cache.block_table = keys.block_table;
    step.expect_attention_in_place(call);
  }
}

TEST(A8, every_cache_takes_keys_as_they_are_and_attention_reads_them_there) {
  Random random;
  nn::DynamicKVCache dynamic;
  expect_cache_in_place(dynamic, 0, random);
  nn::StaticKVCache fixed(64);
  expect_cache_in_place(fixed, 0, random);
  for (const std::int64_t page_size : {1, 16, 256}) {
    nn::PagedKVCache paged(page_size);
    const Tensor many = Tensor::zeros({kBatch, 64, 2, 64}, DType::float32);
    paged.append(many, many);
    paged.reset();  // keeps its pool
    expect_cache_in_place(paged, 0, random);
  }
  for (const std::int64_t window : {20, 33, 64}) {  // a ring that has wrapped, wraps, does not
    nn::SlidingKVCache sliding(window);
    expect_cache_in_place(sliding, window, random);
  }
}

}  // namespace
}  // namespace flashmha::tests
