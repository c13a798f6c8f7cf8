// Decode steps, whose lengths are on the device, against the ordinary forward.
#include <fmt/format.h>

#include "tests/nn/layer_cases.h"

namespace flashmha::tests {
namespace {

using Factory = std::function<std::unique_ptr<nn::KVCache>()>;

// Two caches of one layer: a prompt is appended to both, then one is fed by forwards, the other by
// decode steps.
void expect_equal_steps(const nn::AttentionConfig& config, const Factory& make, bool padded,
                        Random& random) {
  constexpr std::int64_t kBatch = 3;
  constexpr std::int64_t kPrompt = 9;
  constexpr std::int64_t kSteps = 8;
  LayerPair layers(config, random);
  const Tensor x = random.normal({kBatch, kPrompt + kSteps, 24});
  std::vector<std::int32_t> leftpad = {0, 4, 1};
  if (!padded) leftpad.assign(kBatch, 0);
  Tensor mask = Tensor::empty({kBatch, kPrompt + kSteps}, DType::int32);
  for (std::int64_t i = 0; i < mask.numel(); ++i) {
    const std::int64_t row = i / (kPrompt + kSteps);
    mask.as<std::int32_t>()[i] = i % (kPrompt + kSteps) >= leftpad[static_cast<std::size_t>(row)];
  }

  const std::unique_ptr<nn::KVCache> expected_cache = make();
  const std::unique_ptr<nn::KVCache> cache = make();
  const Tensor prompt = clone(x.view().slice(1, 0, kPrompt));
  nn::AttentionInputs inputs;
  for (nn::KVCache* each : {expected_cache.get(), cache.get()}) {
    EXPECT_FALSE(each->reserve(1)) << "empty";
    inputs.hidden_states = prompt;
    inputs.attention_mask = mask.view().slice(1, 0, kPrompt);
    inputs.cache = each;
    layers.flash->forward(inputs);
  }
  for (std::int64_t step = 0; step < kSteps; ++step) {
    const std::int64_t filled = kPrompt + step;
    const Tensor token = clone(x.view().slice(1, filled, filled + 1));
    nn::AttentionInputs forward;
    forward.hidden_states = token;
    forward.attention_mask = mask.view().slice(1, 0, filled + 1);
    forward.cache = expected_cache.get();
    const Tensor expected = layers.flash->forward(forward);

    const auto value = static_cast<std::int32_t>(filled);
    const Tensor cache_seqlens = Tensor::from<std::int32_t>({value, value, value}, {kBatch});
    std::vector<std::int32_t> logical;
    for (const std::int32_t pad : leftpad)
      logical.push_back(value - pad);
    nn::DecodeStep decode;
    decode.cache_seqlens = cache_seqlens;
    if (padded) decode.cache_leftpad = view_of(leftpad.data(), {kBatch});
    nn::AttentionInputs single;
    single.hidden_states = token;
    single.position_ids = view_of(logical.data(), {kBatch, 1});
    single.num_positions = kPrompt + kSteps;
    single.cache = cache.get();
    single.decode = &decode;
    expect_near(layers.flash->forward(single), expected.view(), 1e-5, fmt::format("step {}", step));
    EXPECT_EQ(cache->seqlen(), filled);
    cache->advance(1);
  }
}

TEST(DecodeStep, EqualsAForwardOfOneToken) {
  Random random;
  nn::AttentionConfig unbounded = full_config();
  unbounded.sliding_window = 0;
  nn::AttentionConfig unrotated = small_config();
  unrotated.rotary.reset();
  for (const nn::AttentionConfig& config : {small_config(), unbounded, full_config(), unrotated}) {
    for (const bool padded : {false, true}) {
      expect_equal_steps(
          config, [] { return std::make_unique<nn::DynamicKVCache>(); }, padded, random);
      expect_equal_steps(
          config, [] { return std::make_unique<nn::StaticKVCache>(17); }, padded, random);
    }
  }
}

TEST(DecodeStep, MemoryStaysUntilThereIsNoRoom) {
  Random random;
  nn::DynamicKVCache cache;
  const Tensor k = random.normal({2, 3, 1, 4});
  cache.append(k, k);
  const void* memory = cache.reserve(1)->k.data;
  cache.advance(60);
  EXPECT_EQ(cache.reserve(1)->k.data, memory);
  cache.advance(1);
  EXPECT_EQ(cache.seqlen(), 64);
  const nn::ReservedKeys larger = *cache.reserve(1);
  EXPECT_EQ(larger.k.size(1), 128);
  expect_same_bits(larger.k.slice(1, 0, 3), k, "what was there");
}

TEST(DecodeStep, ErrorsNameTheRule) {
  Random random;
  LayerPair layers(small_config(), random);
  const Tensor x = random.normal({1, 1, 24});
  const Tensor positions = Tensor::zeros({1, 1}, DType::int32);
  const Tensor seqlens = Tensor::zeros({1}, DType::int32);
  const nn::DecodeStep decode{.cache_seqlens = seqlens};
  nn::StaticKVCache full(2);
  nn::PagedKVCache paged(4);
  nn::AttentionInputs inputs;
  inputs.hidden_states = x;
  inputs.cache = &full;
  layers.flash->forward(inputs);
  inputs.decode = &decode;
  expect_error([&] { layers.flash->forward(inputs); },
               {"[MultiHeadAttention] a decode step", "position_ids and num_positions"});
  inputs.position_ids = positions;
  inputs.num_positions = 1;
  layers.flash->forward(inputs);
  expect_error(ErrorCode::unsupported, {"[MultiHeadAttention]", "FlashMultiHeadAttention's"},
               [&] { layers.plain->forward(inputs); });
  full.advance(1);
  expect_error([&] { layers.flash->forward(inputs); },
               {"[StaticKVCache::append]", "1 more tokens exceed the capacity (2); 2 are held"});
  inputs.cache = &paged;
  expect_error([&] { layers.flash->forward(inputs); },
               {"[FlashMultiHeadAttention]", "gives out its memory"});
  expect_error([&] { paged.advance(1); }, {"[KVCache::advance]", "give out their memory"});
}

}  // namespace
}  // namespace flashmha::tests
