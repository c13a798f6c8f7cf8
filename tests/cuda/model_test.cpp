// Models on a GPU against the same models on the CPU.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/located.h"
#include "flashmha/checkpoint.h"
#include "flashmha/generation.h"
#include "flashmha/random.h"
#include "flashmha/sanity.h"
#include "flashmha/training.h"
#include "tests/attention/instance.h"
#include "tests/compare.h"
#include "tests/cuda/gpu.h"
#include "tests/io/folder.h"

namespace flashmha::tests {
namespace {

using DeviceModel = OnGpu;
using model::AttentionKind;
using model::CausalLM;
using model::ModelConfig;

ModelConfig tiny(DType dtype, AttentionKind kind, Device device) {
  ModelConfig config = model::default_config();
  config.vocab_size = 97;
  config.num_layers = 2;
  config.intermediate_size = 96;
  config.initializer_range = 0.08f;
  config.attention.hidden_size = 64;
  config.attention.num_heads = 4;
  config.attention.num_kv_heads = 2;
  config.attention.head_dim = 16;
  config.dtype = dtype;
  config.attention_kind = kind;
  config.device = device;
  return config;
}

// Text that can be learnt: a token follows from the one before, most of the time.
Tensor sentences(std::int64_t batch, std::int64_t seqlen, std::uint64_t seed) {
  Tensor ids = Tensor::empty({batch, seqlen}, DType::int64);
  model::fill_integers(ids, seed, 97);
  for (std::int64_t i = 1; i < ids.numel(); ++i) {
    std::int64_t* id = ids.as<std::int64_t>() + i;
    if (id[0] % 8 != 0) id[0] = (id[-1] * 31 + 7) % 97;
  }
  return ids;
}

std::vector<double> losses_of_training(const ModelConfig& config, std::uint64_t seed,
                                       const PackedSequences* packed = nullptr) {
  CausalLM model(config);
  model.init_weights(seed);
  model::AdamW optimizer(model, {.learning_rate = 3e-3f});
  model::TrainingStep train(model, optimizer);
  std::vector<double> losses;
  for (std::uint64_t step = 0; step < 100; ++step) {
    const Tensor ids = sentences(4, 32, seed + step);
    losses.push_back(train({.input_ids = ids, .packed = packed}, ids).mean);
  }
  return losses;
}

void expect_same_losses(const ModelConfig& cpu, double tolerance,
                        const PackedSequences* packed = nullptr) {
  ModelConfig gpu = cpu;
  gpu.device = kGpu;
  const std::vector<double> expected = losses_of_training(cpu, test_seed(), packed);
  const std::vector<double> losses = losses_of_training(gpu, test_seed(), packed);
  EXPECT_LT(expected.back(), 0.7 * expected.front());  // something was learnt
  for (std::size_t step = 0; step < losses.size(); ++step)
    EXPECT_NEAR(losses[step], expected[step], tolerance * expected[step]) << step;
}

TEST_F(DeviceModel, HundredStepsOfTrainingInFloat32) {
  expect_same_losses(tiny(DType::float32, AttentionKind::plain, {}), 2e-3);
}

TEST_F(DeviceModel, HundredStepsOfTrainingInBFloat16) {
  expect_same_losses(tiny(DType::bfloat16, AttentionKind::flash, {}), 0.05);
}

TEST_F(DeviceModel, HundredStepsOfTrainingOnPackedSequences) {
  PackedSequences packed{.cu_seqlens = Tensor::from<std::int32_t>({0, 20, 32, 64, 65, 128}, {6}),
                         .max_seqlen = 63};
  expect_same_losses(tiny(DType::float32, AttentionKind::plain, {}), 2e-3, &packed);
  expect_same_losses(tiny(DType::bfloat16, AttentionKind::flash, {}), 0.05, &packed);
}

// A recorded step computes what the step computes, to the bit where those repeat.
TEST_F(DeviceModel, RecordedStepsGiveTheBitsOfOthers) {
  setenv("FLASHMHA_DETERMINISTIC", "1", 1);
  for (const bool packs : {false, true}) {
    const ModelConfig config = tiny(DType::bfloat16, AttentionKind::flash, kGpu);
    CausalLM recorded(config);
    CausalLM direct(config);
    recorded.init_weights(5);
    direct.init_weights(5);
    model::AdamW recorded_optimizer(recorded);
    model::AdamW direct_optimizer(direct);
    model::GradientPass pass(recorded);
    for (std::uint64_t step = 0; step < 8; ++step) {
      // The number of sequences changes, once beyond what was recorded.
      const std::int32_t count = step == 6 ? 70 : 2 + static_cast<std::int32_t>(step % 3);
      std::vector<std::int32_t> starts;
      for (std::int32_t i = 0; i <= count; ++i)
        starts.push_back(128 * i / count);
      PackedSequences packed{
          .cu_seqlens = Tensor::from(std::span<const std::int32_t>(starts), {std::ssize(starts)}),
          .max_seqlen = 128};
      const Tensor ids = sentences(4, 32, step);
      const model::ModelInputs inputs{.input_ids = ids, .packed = packs ? &packed : nullptr};
      const Tensor targets = model::shift_labels(ids, inputs.packed);
      const float scale = 0.5f + 0.1f * static_cast<float>(step);
      const model::Loss expected = compute_gradients(direct, inputs, targets, scale);
      const model::Loss loss = pass(inputs, targets, scale);
      EXPECT_EQ(loss.mean, expected.mean) << step;
      EXPECT_EQ(loss.num_tokens, expected.num_tokens);
      recorded_optimizer.set_learning_rate(1e-3f * static_cast<float>(step));
      direct_optimizer.set_learning_rate(1e-3f * static_cast<float>(step));
      EXPECT_EQ(recorded_optimizer.step(), direct_optimizer.step()) << step;
    }
  }
  unsetenv("FLASHMHA_DETERMINISTIC");
}

TEST_F(DeviceModel, AGradientThatIsNotFiniteChangesNothing) {
  CausalLM model(tiny(DType::bfloat16, AttentionKind::flash, kGpu));
  model.init_weights(5);
  model::AdamW optimizer(model);
  model::TrainingStep train(model, optimizer);
  const Tensor ids = sentences(2, 16, 1);
  for (int step = 0; step < 3; ++step)
    train({.input_ids = ids}, ids);
  nn::Parameter* first = nullptr;
  model.visit([&](const std::string&, nn::Parameter& parameter) {
    if (!first) first = &parameter;
  });
  const Tensor before = to_device(first->value, {});
  fill(first->gradient.view().slice(0, 3, 4), INFINITY);
  EXPECT_FALSE(std::isfinite(optimizer.step()));
  EXPECT_EQ(optimizer.num_steps(), 3);
  EXPECT_TRUE(same_bits(to_device(first->value, {}), before));
  EXPECT_FALSE(std::isfinite(to_device(first->gradient, {}).as<float>()[3 * 64]));
  model.zero_gradients();
  EXPECT_TRUE(std::isfinite(train({.input_ids = ids}, ids).mean));
  EXPECT_EQ(optimizer.num_steps(), 4);
}

// Steps by a graph (dynamic, static) and without (paged): the same tokens, also when rows end
// early, caches grow and prompts are padded.
TEST_F(DeviceModel, DecodesTheSameTokensByAGraph) {
  for (const std::int64_t window : {0, 9}) {
    ModelConfig config = tiny(DType::bfloat16, AttentionKind::flash, kGpu);
    config.attention.sliding_window = window;
    CausalLM model(config);
    model.init_weights(3);
    const std::vector<std::vector<std::int64_t>> prompts = {{1, 2, 3, 4, 5}, {6, 7}, {8}};
    std::vector<model::GenerationOptions> all(3, {.max_new_tokens = 90});
    all[1].stop_token_ids = {11, 12, 13, 14, 15, 16, 17, 18};
    all[2].sampling = {.temperature = 0.8, .top_p = 0.9, .repetition_penalty = 1.1, .seed = 5};
    all[2].num_return_sequences = 2;
    for (model::GenerationOptions& options : all) {
      options.cache = model::CacheKind::paged_cache;
      const auto expected = generate(model, prompts, options);
      for (const auto kind : {model::CacheKind::dynamic_cache, model::CacheKind::static_cache}) {
        options.cache = kind;
        const auto results = generate(model, prompts, options);
        ASSERT_EQ(results.size(), expected.size());
        for (std::size_t i = 0; i < results.size(); ++i) {
          // Roundings differ a little: a near tie may be decided differently, late.
          const auto& tokens = results[i].tokens;
          const std::size_t same = static_cast<std::size_t>(
              std::ranges::mismatch(tokens, expected[i].tokens).in1 - tokens.begin());
          EXPECT_GE(same, std::min<std::size_t>(tokens.size(), 12)) << i << " window " << window;
        }
      }
    }
  }
}

TEST_F(DeviceModel, SanityCheck) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const std::int64_t window : {0, 9}) {
      ModelConfig config = tiny(dtype, AttentionKind::flash, kGpu);
      config.attention.sliding_window = window;
      model::ModelTrio models(config, test_seed());
      check_model(models, {.seqlen = 24, .new_tokens = 6}, [&](const model::Check& check) {
        EXPECT_TRUE(check.passed())
            << dtype_name(dtype) << ", window " << window << ": " << check.name << ": "
            << check.error << " above " << check.tolerance << " " << check.detail;
      });
    }
  }
}

// The same float32 model in both places, for results that must be equal.
struct TwoModels {
  CausalLM cpu{tiny(DType::float32, AttentionKind::plain, {})};
  CausalLM gpu{tiny(DType::float32, AttentionKind::plain, kGpu)};
  TwoModels() {
    cpu.init_weights(test_seed());
    gpu.init_weights(test_seed());
  }
};

TEST_F(DeviceModel, GeneratesTheTokensOfTheCpu) {
  const TwoModels models;
  const std::vector<std::vector<std::int64_t>> prompts = {{1, 2, 3, 4, 5}, {6, 7}, {8}};
  std::vector<model::GenerationOptions> all(4, {.max_new_tokens = 12});
  all[1].sampling = {.temperature = 0.9, .top_k = 20, .repetition_penalty = 1.2, .seed = 5};
  all[1].num_return_sequences = 2;
  all[2].num_beams = 3;
  all[3].cache = {};
  for (model::GenerationOptions& options : all) {
    for (const auto kind : {model::CacheKind::dynamic_cache, model::CacheKind::static_cache,
                            model::CacheKind::paged_cache}) {
      if (options.cache) options.cache = kind;
      const auto expected = generate(models.cpu, prompts, options);
      const auto results = generate(models.gpu, prompts, options);
      ASSERT_EQ(results.size(), expected.size());
      for (std::size_t i = 0; i < results.size(); ++i)
        EXPECT_EQ(results[i].tokens, expected[i].tokens) << i;
    }
  }
}

TEST_F(DeviceModel, IsSavedAndLoaded) {
  TwoModels models;
  const test::Folder folder;
  save_pretrained(models.gpu, folder.path());
  const auto on_cpu =
      model::load_pretrained(folder.path(), {.attention_kind = AttentionKind::plain});
  const auto on_gpu = model::load_pretrained(
      folder.path(), {.device = kGpu, .attention_kind = AttentionKind::plain});
  const Tensor ids = sentences(2, 10, test_seed());
  const Tensor expected = models.cpu.forward({.input_ids = ids});
  for (CausalLM* model : {on_cpu.get(), on_gpu.get(), &models.gpu}) {
    const Tensor logits = model->forward({.input_ids = to_device(ids, model->config().device)});
    EXPECT_LT(model::relative_error(logits, expected), 1e-4);
  }
}

// The second table row of docs/implementation.md, Memory.
TEST_F(DeviceModel, KeepsWhatTheArithmeticSays) {
  const ModelConfig config = tiny(DType::bfloat16, AttentionKind::flash, kGpu);
  CausalLM model(config);
  const std::int64_t batch = 4;
  const std::int64_t seqlen = 64;
  const Tensor ids = sentences(batch, seqlen, 1);
  model.forward({.input_ids = ids});  // makes the rotary tables
  const std::size_t before = memory_stats(kGpu).current_bytes;
  CausalLM::Saved saved;
  const Tensor logits = model.forward({.input_ids = ids}, &saved);
  const std::int64_t tokens = batch * seqlen;
  const std::int64_t h = config.attention.hidden_size;
  const std::int64_t q = config.attention.num_heads * config.attention.head_dim;
  const std::int64_t k = config.attention.num_kv_heads * config.attention.head_dim;
  const std::int64_t layer = tokens * (2 * (2 * h + 2 * q + 2 * k + 2 * config.intermediate_size) +
                                       4 * config.attention.num_heads + 12);
  const std::int64_t others = tokens * (2 * h + 4 + 8 + 2 * config.vocab_size);
  EXPECT_EQ(memory_stats(kGpu).current_bytes - before,
            static_cast<std::size_t>(config.num_layers * layer + others));
}

// Activations of a forward without a backward do not grow with the number of layers.
TEST_F(DeviceModel, FreesWhatItNoLongerNeeds) {
  ModelConfig config = tiny(DType::bfloat16, AttentionKind::flash, kGpu);
  const Tensor ids = sentences(2, 64, 1);
  std::size_t extra[2] = {};
  for (const std::int64_t layers : {2, 6}) {
    config.num_layers = layers;
    const CausalLM model(config);
    model.forward({.input_ids = ids});  // makes the rotary tables
    reset_peak_memory(kGpu);
    const std::size_t before = memory_stats(kGpu).current_bytes;
    model.forward({.input_ids = ids});
    EXPECT_EQ(memory_stats(kGpu).current_bytes, before);
    extra[layers == 6] = memory_stats(kGpu).peak_bytes - before;
  }
  EXPECT_EQ(extra[0], extra[1]);
}

}  // namespace
}  // namespace flashmha::tests
