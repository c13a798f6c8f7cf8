// Loss, AdamW, and models that learn.
#include "flashmha/training.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "flashmha/generation.h"
#include "flashmha/random.h"
#include "flashmha/sanity.h"
#include "tests/core/expect_error.h"
#include "tests/model/fixture.h"

namespace flashmha {
namespace {

using model::AttentionKind;
using model::CausalLM;
using model::ModelConfig;
using namespace test;

std::vector<std::int64_t> values_of(const TensorView& view) {
  const Tensor flat = clone(view);
  return {flat.as<std::int64_t>(), flat.as<std::int64_t>() + flat.numel()};
}

TEST(Loss, LabelsAreShiftedInsideRowsAndSequences) {
  const Tensor labels = Tensor::from<std::int32_t>({1, 2, 3, 4, 5, -100, 7, 8}, {2, 4});
  using Values = std::vector<std::int64_t>;
  EXPECT_EQ(values_of(model::shift_labels(labels)), (Values{2, 3, 4, -100, -100, 7, 8, -100}));
  const PackedSequences packed{.cu_seqlens = Tensor::from<std::int32_t>({0, 2, 4, 7, 8}, {5}),
                               .max_seqlen = 3};
  EXPECT_EQ(values_of(model::shift_labels(labels, &packed)),
            (Values{2, -100, 4, -100, -100, 7, -100, -100}));
  expect_error(ErrorCode::invalid_argument, {"[shift_labels] labels must be int32 or int64"}, [&] {
    model::shift_labels(Tensor::zeros({2, 4}, DType::float32));
  });
}

// Against the definition in double precision: value, gradient, ignored rows, in place.
TEST(Loss, CrossEntropyMatchesItsDefinition) {
  const std::int64_t rows = 7;
  const std::int64_t vocab = 33;
  Tensor logits = Tensor::empty({1, rows, vocab}, DType::float32);
  model::fill_normal(logits, test_seed(), 3.0);
  fill(logits.view().select(1, 2).slice(1, 4, 5), 80.0);  // exp would overflow without a maximum
  const Tensor targets = random_ids(1, rows, vocab, test_seed() + 1);
  const TensorView flat = targets.view().reshape({-1});
  flat.as<std::int64_t>()[3] = model::kIgnoreIndex;
  flat.as<std::int64_t>()[6] = model::kIgnoreIndex;

  double expected = 0.0;
  Tensor gradient = Tensor::zeros({1, rows, vocab}, DType::float32);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t target = flat.as<std::int64_t>()[row];
    if (target == model::kIgnoreIndex) continue;
    const float* score = logits.as<float>() + row * vocab;
    double total = 0.0;
    for (std::int64_t i = 0; i < vocab; ++i)
      total += std::exp(static_cast<double>(score[i]));
    expected += (std::log(total) - score[target]) / 5.0;
    for (std::int64_t i = 0; i < vocab; ++i) {
      const double p = std::exp(static_cast<double>(score[i])) / total;
      gradient.as<float>()[row * vocab + i] =
          static_cast<float>(0.5 * (p - (i == target ? 1.0 : 0.0)) / 5.0);
    }
  }
  const Tensor separate = Tensor::empty(logits.shape(), DType::float32);
  fill(separate, std::numeric_limits<double>::quiet_NaN());
  const model::Loss loss = model::cross_entropy(logits, flat, separate, 0.5f);
  EXPECT_EQ(loss.num_tokens, 5);
  EXPECT_NEAR(loss.mean, expected, 1e-6 * expected + 1e-6);
  EXPECT_LT(model::relative_error(separate, gradient), 1e-5);
  model::cross_entropy(logits, flat, logits, 0.5f);
  EXPECT_EQ(model::relative_error(logits, separate), 0.0);
}

TEST(Loss, IsZeroWithoutTargets) {
  Tensor logits = Tensor::empty({1, 3, 8}, DType::float32);
  model::fill_normal(logits, test_seed());
  const Tensor targets = Tensor::from<std::int64_t>({-100, -100, -100}, {3});
  const model::Loss loss = model::cross_entropy(logits, targets, logits);
  EXPECT_EQ(loss.mean, 0.0);
  EXPECT_EQ(loss.num_tokens, 0);
  EXPECT_EQ(model::relative_error(logits, Tensor::zeros({1, 3, 8}, DType::float32)), 0.0);
}

// AdamW once more in double precision, from Algorithm 2 of Loshchilov & Hutter (2019) with the
// gradient clipped by its norm over all tensors first.
class AdamWInDouble {
 public:
  AdamWInDouble(CausalLM& model, const model::OptimizerOptions& options) : options_(options) {
    for (const auto& [name, view] : weights_of(model)) {
      const Tensor values = cast(view, DType::float32);
      State& state = states[name];
      state.weight.assign(values.as<float>(), values.as<float>() + values.numel());
      state.moment1.assign(state.weight.size(), 0.0);
      state.moment2.assign(state.weight.size(), 0.0);
      state.decay = view.rank() >= 2 ? options.weight_decay : 0.0;
    }
  }

  // Returns the gradient norm.
  double step(const std::map<std::string, std::vector<double>>& gradients) {
    ++num_steps_;
    double squares = 0.0;
    for (const auto& [name, gradient] : gradients) {
      for (const double g : gradient)
        squares += g * g;
    }
    const double norm = std::sqrt(squares);
    const double limit = options_.max_gradient_norm;
    const double clip = limit > 0.0 ? std::min(1.0, limit / (norm + 1e-6)) : 1.0;
    const double correction1 = 1.0 - std::pow(double(options_.beta1), num_steps_);
    const double correction2 = 1.0 - std::pow(double(options_.beta2), num_steps_);
    for (auto& [name, state] : states) {
      for (std::size_t i = 0; i < state.weight.size(); ++i) {
        const double g = gradients.at(name)[i] * clip;
        state.moment1[i] += (1.0 - options_.beta1) * (g - state.moment1[i]);
        state.moment2[i] += (1.0 - options_.beta2) * (g * g - state.moment2[i]);
        const double update = state.moment1[i] / correction1 /
                              (std::sqrt(state.moment2[i] / correction2) + options_.eps);
        state.weight[i] -= options_.learning_rate * (update + state.decay * state.weight[i]);
      }
    }
    return norm;
  }

  struct State {
    std::vector<double> weight, moment1, moment2;
    double decay = 0.0;
  };
  std::map<std::string, State> states;

 private:
  model::OptimizerOptions options_;
  int num_steps_ = 0;
};

// Five steps with random gradients of changing size, so that some are clipped and some are not.
void expect_adamw(DType dtype, double tolerance) {
  ModelConfig config = tiny_config();
  config.dtype = dtype;
  CausalLM model(config);
  model.init_weights(test_seed());
  const model::OptimizerOptions options{
      .learning_rate = 0.01f, .weight_decay = 0.3f, .max_gradient_norm = 5.0f};
  AdamWInDouble truth(model, options);
  model::AdamW optimizer(model, options);
  for (std::uint64_t step = 0; step < 5; ++step) {
    std::map<std::string, std::vector<double>> gradients;
    for (const auto& [name, gradient] : gradients_of(model)) {
      model::fill_normal(gradient, test_seed() + step * 100 + gradients.size(),
                         step % 2 == 0 ? 1.0 : 1e-3);
      gradients[name].assign(gradient.as<float>(), gradient.as<float>() + gradient.numel());
    }
    const double norm = truth.step(gradients);
    EXPECT_NEAR(optimizer.step(), norm, 1e-5 * norm);
  }
  EXPECT_EQ(optimizer.num_steps(), 5);
  for (const auto& [name, view] : weights_of(model)) {
    const std::vector<double>& weight = truth.states.at(name).weight;
    const Tensor expected = Tensor::empty(view.shape, DType::float32);
    for (std::size_t i = 0; i < weight.size(); ++i) {
      expected.as<float>()[i] = static_cast<float>(weight[i]);
    }
    EXPECT_LT(model::relative_error(view, expected), tolerance) << name;
    EXPECT_EQ(model::relative_error(gradients_of(model).at(name),
                                    Tensor::zeros(view.shape, DType::float32)),
              0.0)
        << name << ": a step must zero the gradients";
  }
}

TEST(AdamW, MatchesDoublePrecisionInFloat32) {
  expect_adamw(DType::float32, 1e-5);
}

// The float32 master weights are right, so the parameters are off by their rounding only.
TEST(AdamW, MatchesDoublePrecisionInBFloat16) {
  expect_adamw(DType::bfloat16, 0x1p-8);
}

TEST(AdamW, MasterWeightsKeepUpdatesThatBFloat16WouldLose) {
  ModelConfig config = tiny_config();
  config.dtype = DType::bfloat16;
  CausalLM model(config);
  const std::string name = "model.norm.weight";  // ones, not decayed
  model::AdamW optimizer(model, {.learning_rate = 1e-4f});
  for (int step = 0; step < 100; ++step) {
    fill(gradients_of(model).at(name), 1.0);
    optimizer.step();
  }
  // A hundred steps of 1e-4 down from 1, where neighbours in bfloat16 are 2^-8 apart.
  const float value = static_cast<float>(*weights_of(model).at(name).as<BFloat16>());
  EXPECT_NEAR(value, 0.99f, 0x1p-8);
  EXPECT_LT(value, 1.0f);
}

TEST(AdamW, LeavesParametersWithoutGradientAlone) {
  CausalLM model(tiny_config());
  model.init_weights(test_seed());
  CausalLM before(tiny_config());
  copy_weights(model, before);
  model::AdamW optimizer(model);
  optimizer.step();
  for (const auto& [name, view] : weights_of(model)) {
    EXPECT_EQ(model::relative_error(view, weights_of(before).at(name)), 0.0) << name;
  }
}

// Nothing is spoilt by a gradient that is NaN or infinite, and it can still be looked at.
TEST(AdamW, LeavesEverythingAloneWhenTheGradientIsNotFinite) {
  for (const double poison :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    CausalLM model(tiny_config());
    model.init_weights(test_seed());
    CausalLM before(tiny_config());
    copy_weights(model, before);
    model::AdamW optimizer(model);
    fill(gradients_of(model).at("model.norm.weight").slice(0, 3, 4), poison);
    EXPECT_FALSE(std::isfinite(optimizer.step()));
    EXPECT_EQ(optimizer.num_steps(), 0);
    for (const auto& [name, view] : weights_of(model)) {
      EXPECT_EQ(model::relative_error(view, weights_of(before).at(name)), 0.0) << name;
    }
    EXPECT_FALSE(std::isfinite(gradients_of(model).at("model.norm.weight").as<float>()[3]));
  }
}

// An optimiser that was given the state of another goes on with the same bits.
TEST(AdamW, ContinuesFromItsState) {
  ModelConfig config = tiny_config();
  config.dtype = DType::bfloat16;
  CausalLM one(config);
  one.init_weights(test_seed());
  CausalLM two(config);
  model::AdamW first(one);
  model::AdamW second(two);
  const Tensor ids = random_ids(4, 8, 50, test_seed() + 1);
  for (int step = 0; step < 3; ++step)
    training_step(one, first, {.input_ids = ids}, ids);

  copy_weights(one, two);
  std::map<std::string, TensorView> state;
  first.visit_state(
      [&](const std::string& name, const TensorView& tensor) { state[name] = tensor; });
  EXPECT_EQ(state.size(), 3 * weights_of(one).size());
  second.visit_state(
      [&](const std::string& name, const TensorView& tensor) { copy(state.at(name), tensor); });
  second.resume(first.num_steps());
  for (int step = 0; step < 2; ++step) {
    training_step(one, first, {.input_ids = ids}, ids);
    training_step(two, second, {.input_ids = ids}, ids);
  }
  for (const auto& [name, view] : weights_of(one)) {
    EXPECT_EQ(model::relative_error(weights_of(two).at(name), view), 0.0) << name;
  }
}

TEST(Training, MicroBatchesAddUpToTheBatch) {
  CausalLM whole(tiny_config());
  whole.init_weights(test_seed());
  CausalLM parts(tiny_config());
  copy_weights(whole, parts);
  const Tensor ids = random_ids(4, 8, 50, test_seed() + 1);
  accumulate_gradients(whole, {.input_ids = ids}, ids);
  for (std::int64_t row = 0; row < 4; ++row) {
    const TensorView part = ids.view().slice(0, row, row + 1);
    accumulate_gradients(parts, {.input_ids = part}, part, 0.25f);
  }
  for (const auto& [name, gradient] : gradients_of(whole)) {
    EXPECT_LT(model::relative_error(gradients_of(parts).at(name), gradient), 2e-5) << name;
  }
  expect_error(ErrorCode::invalid_argument, {"labels must have the shape of input_ids"},
               [&] { accumulate_gradients(whole, {.input_ids = ids}, ids.view().slice(0, 0, 2)); });
}

// Layers keep their inputs only, and the backward gives the bits that it gives without.
TEST(Training, RecomputingSavesMemoryAndChangesNoBit) {
  for (const AttentionKind kind : {AttentionKind::plain, AttentionKind::flash}) {
    ModelConfig config = tiny_config(kind);
    config.num_layers = 12;
    config.attention.dropout = 0.2f;
    config.sublayer_output_norms = true;
    CausalLM kept(config);
    CausalLM recomputed(config);
    kept.init_weights(test_seed());
    copy_weights(kept, recomputed);
    const Tensor ids = random_ids(3, 40, 50, test_seed() + 1);
    const Tensor mask = left_padding_mask({40, 17, 25});
    model::ModelInputs inputs{.input_ids = ids,
                              .attention_mask = mask,
                              .training = true,
                              .dropout_seed = 3,
                              .dropout_offset = 4};
    const auto peak = [&](CausalLM& model) {
      accumulate_gradients(model, inputs, ids);  // makes the gradients
      model.zero_gradients();
      reset_peak_memory();
      const std::size_t before = memory_stats().current_bytes;
      accumulate_gradients(model, inputs, ids);
      return memory_stats().peak_bytes - before;
    };
    const std::size_t most = peak(kept);
    inputs.recompute = true;
    EXPECT_LT(peak(recomputed), most / 2);
    for (const auto& [name, gradient] : gradients_of(kept))
      EXPECT_EQ(model::relative_error(gradients_of(recomputed).at(name), gradient), 0.0) << name;
  }
}

// The task: the second half of a sequence repeats the first. It needs attention to a fixed distance
// back, so a model without working attention stays at the loss of guessing, ln(16) = 2.77.
Tensor copy_task(std::int64_t batch, std::int64_t half, std::uint64_t seed) {
  Tensor ids = random_ids(batch, 2 * half, 16, seed);
  copy(ids.view().slice(1, 0, half), ids.view().slice(1, half, 2 * half));
  return ids;
}

Tensor second_half_labels(const TensorView& ids) {
  Tensor labels = clone(ids);
  fill(labels.view().slice(1, 0, ids.size(1) / 2), static_cast<double>(model::kIgnoreIndex));
  return labels;
}

double loss_after_training(CausalLM& model, int steps) {
  model.init_weights(test_seed());
  model::AdamW optimizer(model, {.learning_rate = 3e-3f, .weight_decay = 0.01f});
  double loss = 0.0;
  for (int step = 0; step < steps; ++step) {
    const Tensor ids = copy_task(16, 6, test_seed() + 1000 + static_cast<std::uint64_t>(step));
    loss = training_step(model, optimizer, {.input_ids = ids}, second_half_labels(ids)).mean;
  }
  return loss;
}

ModelConfig copy_config(AttentionKind kind, DType dtype) {
  ModelConfig config = tiny_config(kind);
  config.vocab_size = 16;
  config.initializer_range = 0.1f;
  config.dtype = dtype;
  return config;
}

TEST(C9, trains_and_generates_natively) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    CausalLM model(copy_config(AttentionKind::flash, dtype));
    const double loss = loss_after_training(model, 400);
    EXPECT_LT(loss, 0.4) << dtype_name(dtype);  // guessing: 2.77

    // What it learnt shows in generation: the prompt's first half comes again.
    const Tensor ids = copy_task(8, 6, test_seed() + 999);
    nn::KVCaches caches = make_caches(model.config(), model::CacheKind::dynamic_cache, 12);
    const Tensor tokens =
        generate(model, ids.view().slice(1, 0, 7), {}, &caches, {.max_new_tokens = 5});
    int num_equal = 0;
    for (std::int64_t i = 0; i < tokens.numel(); ++i) {
      num_equal += tokens.as<std::int64_t>()[i] == ids.as<std::int64_t>()[i] ? 1 : 0;
    }
    EXPECT_GT(num_equal - 8 * 7, 30) << "of 40 tokens, " << dtype_name(dtype);
  }
}

TEST(A11, plain_and_flash_learn_alike) {
  CausalLM plain(copy_config(AttentionKind::plain, DType::float32));
  CausalLM flash(copy_config(AttentionKind::flash, DType::float32));
  EXPECT_NEAR(loss_after_training(plain, 10), loss_after_training(flash, 10), 1e-3);
}

}  // namespace
}  // namespace flashmha
