#include <array>
#include <cmath>
#include <limits>
#include <span>

#include "flashmha/ops.h"
#include "tests/nn/support.h"

namespace flashmha::tests {
namespace {

constexpr std::int64_t kIgnored = -100;

double loss_in_double(const Values& logits, std::size_t vocabulary, const Values& targets) {
  double sum = 0.0;
  double count = 0.0;
  for (std::size_t row = 0; row < targets.size(); ++row) {
    if (targets[row] == static_cast<double>(kIgnored)) continue;
    double total = 0.0;
    for (std::size_t j = 0; j < vocabulary; ++j)
      total += std::exp(logits[row * vocabulary + j]);
    sum += std::log(total) - logits[row * vocabulary + static_cast<std::size_t>(targets[row])];
    count += 1.0;
  }
  return count > 0.0 ? sum / count : 0.0;
}

TEST(CrossEntropy, LossAndGradientInPlace) {
  Random random;
  const Tensor logits = random.normal({6, 53}, DType::float32, 2.0);
  const Tensor targets = random.integers({6}, 53);
  targets.as<std::int32_t>()[2] = kIgnored;
  const Tensor loss = poisoned({2}), lse = poisoned({6});
  ops::cross_entropy(logits, targets, kIgnored, loss, lse);
  const Values v = values_of(logits), t = values_of(targets);
  EXPECT_NEAR(loss.as<float>()[0], loss_in_double(v, 53, t), 1e-5);
  EXPECT_EQ(loss.as<float>()[1], 5.0f);
  const Tensor scale = Tensor::from<float>({0.5f}, {1});
  ops::cross_entropy_backward(
      logits, {.targets = targets, .lse = lse, .loss = loss, .scale = scale}, logits);
  const auto half_loss = [&](const Values& x) { return 0.5 * loss_in_double(x, 53, t); };
  expect_near(logits, numeric_gradient(half_loss, v), 1e-6, "dlogits");
}

TEST(CrossEntropy, LongRowsInSixteenBitsAndThreads) {
  Random random;
  const Tensor logits = random.normal({9, 5003}, DType::bfloat16, 3.0);
  const Tensor targets = random.integers({9}, 5003, DType::int64);
  const Tensor loss = poisoned({2}), lse = poisoned({9});
  ops::cross_entropy(logits, targets, kIgnored, loss, lse);
  EXPECT_NEAR(loss.as<float>()[0], loss_in_double(values_of(logits), 5003, values_of(targets)),
              1e-4);
  const Tensor one = poisoned({9, 5003}, DType::bfloat16), many = clone(one);
  const ops::CrossEntropySaved saved{.targets = targets, .lse = lse, .loss = loss};
  with_threads(1, [&] { ops::cross_entropy_backward(logits, saved, one); });
  with_threads(4, [&] { ops::cross_entropy_backward(logits, saved, many); });
  expect_same_bits(one, many, "dlogits");
}

TEST(CrossEntropy, AllIgnoredAndBadTargets) {
  Random random;
  const Tensor logits = random.normal({2, 5});
  const Tensor ignored = Tensor::from({std::int32_t{-100}, std::int32_t{-100}}, {2});
  const Tensor loss = poisoned({2}), lse = poisoned({2}), d = poisoned({2, 5});
  ops::cross_entropy(logits, ignored, kIgnored, loss, lse);
  expect_near(loss, Values{0, 0}, 0.0, "loss");
  ops::cross_entropy_backward(logits, {.targets = ignored, .lse = lse, .loss = loss}, d);
  EXPECT_TRUE(all_zero(d));
  const Tensor bad = Tensor::from({std::int32_t{0}, std::int32_t{5}}, {2});
  expect_error([&] { ops::cross_entropy(logits, bad, kIgnored, loss, lse); },
               {"[cross_entropy]", "[0, 5)", "got 5 in row 1"});
}

TEST(GradientNorm, OfAllTensors) {
  Random random;
  const Tensor a = random.normal({70, 101}), b = random.normal({3});
  const Tensor norm = poisoned({1}), again = poisoned({1});
  const TensorView both[] = {a, b};
  with_threads(1, [&] { ops::gradient_norm(both, norm); });
  with_threads(4, [&] { ops::gradient_norm(both, again); });
  double sum = 0.0;
  for (const Tensor* tensor : {&a, &b}) {
    for (const double x : values_of(*tensor))
      sum += x * x;
  }
  EXPECT_NEAR(norm.as<float>()[0], std::sqrt(sum), 1e-4);
  expect_same_bits(norm, again, "norm");
}

Tensor schedule_of(const ops::AdamWOptions& options, float learning_rate, std::int64_t step) {
  const auto values = ops::adamw_schedule(options, learning_rate, step);
  return Tensor::from(std::span<const float>(values), {3});
}

TEST(AdamW, TenStepsOfBothPrecisions) {
  Random random;
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const bool narrow = dtype != DType::float32;
    const Tensor parameter = random.normal({3001}, dtype);
    const Tensor master = narrow ? cast(parameter, DType::float32) : Tensor();
    const Tensor moment1 = Tensor::zeros({3001}, DType::float32);
    const Tensor moment2 = Tensor::zeros({3001}, DType::float32);
    const Tensor norm = poisoned({1});
    Values p = values_of(parameter), m(p.size()), v(p.size());
    for (std::int64_t step = 1; step <= 10; ++step) {
      const Tensor gradient = random.normal({3001});
      const Values g = values_of(gradient);
      const TensorView all[] = {gradient};
      ops::gradient_norm(all, norm);
      const ops::AdamWOptions options{.weight_decay = 0.1f, .max_gradient_norm = 1.0f};
      const Tensor schedule = schedule_of(options, 0.01f, step);
      ops::adamw({.parameter = parameter,
                  .gradient = gradient,
                  .moment1 = moment1,
                  .moment2 = moment2,
                  .master = master},
                 {.schedule = schedule, .gradient_norm = norm}, options);
      for (const double value : values_of(gradient))
        EXPECT_EQ(value, 0.0);
      const double clip = std::min(1.0, 1.0 / (double(norm.as<float>()[0]) + 1e-6));
      for (std::size_t i = 0; i < p.size(); ++i) {
        m[i] = 0.9 * m[i] + 0.1 * clip * g[i];
        v[i] = 0.999 * v[i] + 0.001 * clip * g[i] * clip * g[i];
        const double direction = m[i] / (1 - std::pow(0.9, step)) /
                                 (std::sqrt(v[i] / (1 - std::pow(0.999, step))) + 1e-8);
        p[i] -= 0.01 * (0.1 * p[i] + direction);
      }
    }
    expect_near(narrow ? master.view() : parameter.view(), p, 1e-4, "float32 weights");
    if (narrow) expect_same_bits(parameter, cast(master, dtype), "rounded weights");
  }
}

TEST(AdamW, ANormThatIsNotFiniteChangesNothing) {
  Random random;
  const Tensor schedule = schedule_of({}, 0.01f, 1);
  for (const float wrong : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    const Tensor parameter = random.normal({100});
    const Tensor gradient = random.normal({100});
    const Tensor moment1 = random.normal({100});
    const Tensor moment2 = random.normal({100});
    const std::array before = {clone(parameter), clone(gradient), clone(moment1), clone(moment2)};
    const Tensor norm = Tensor::from<float>({wrong}, {1});
    ops::adamw(
        {.parameter = parameter, .gradient = gradient, .moment1 = moment1, .moment2 = moment2},
        {.schedule = schedule, .gradient_norm = norm}, {});
    expect_same_bits(parameter, before[0], "parameter");
    expect_same_bits(gradient, before[1], "gradient");
    expect_same_bits(moment1, before[2], "moment1");
    expect_same_bits(moment2, before[3], "moment2");
  }
}

TEST(AdamW, NeedsAMasterForSixteenBitsOnly) {
  const Tensor x = Tensor::zeros({4}, DType::bfloat16);
  const Tensor f = Tensor::zeros({4}, DType::float32);
  const Tensor schedule = schedule_of({}, 0.01f, 1);
  const Tensor norm = Tensor::zeros({1}, DType::float32);
  const ops::AdamWStep step{.schedule = schedule, .gradient_norm = norm};
  expect_error(
      [&] { ops::adamw({.parameter = x, .gradient = f, .moment1 = f, .moment2 = f}, step, {}); },
      {"[adamw]", "master must be given", "bfloat16"});
  expect_error(
      [&] {
        ops::adamw({.parameter = f, .gradient = f, .moment1 = f, .moment2 = f, .master = f}, step,
                   {});
      },
      {"[adamw]", "only for them"});
  expect_error(
      [&] {
        ops::adamw({.parameter = f, .gradient = f, .moment1 = f, .moment2 = f},
                   {.schedule = norm, .gradient_norm = norm}, {});
      },
      {"[adamw]", "schedule must have shape [3]", "[1]"});
  expect_error(
      [&] {
        ops::adamw({.parameter = f, .gradient = f, .moment1 = f, .moment2 = f},
                   {.schedule = schedule}, {.max_gradient_norm = 1.0f});
      },
      {"[adamw]", "max_gradient_norm (1) needs gradient_norm"});
  expect_error([] { ops::adamw_schedule({}, 0.1f, 0); },
               {"[adamw_schedule]", "step (0) counts from 1"});
}

}  // namespace
}  // namespace flashmha::tests
