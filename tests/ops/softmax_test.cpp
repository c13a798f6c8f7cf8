#include <cmath>
#include <limits>

#include "flashmha/ops.h"
#include "tests/nn/support.h"

namespace flashmha::tests {
namespace {

// Softmax of [batch, heads, rows, columns] as ops.h describes it.
struct Model {
  std::size_t heads, rows, columns;
  ops::SoftmaxOptions options;
  Values mask;   // of the full shape, or empty
  Values lse{};  // of the last run

  Values run(const Values& scores, const Values& sinks) {
    Values p(scores.size());
    lse.clear();
    for (std::size_t row = 0; row < scores.size() / columns; ++row) {
      const auto i = static_cast<std::int64_t>(row % rows);
      const std::size_t head = row / rows % heads;
      double sum = sinks.empty() ? 0.0 : std::exp(sinks[head]);
      for (std::size_t j = 0; j < columns; ++j) {
        const std::size_t at = row * columns + j;
        const auto column = static_cast<std::int64_t>(j);
        const std::int64_t center = i + options.shift;
        bool seen = mask.empty() || mask[at] != 0.0;
        seen &= options.window_left < 0 || column >= center - options.window_left;
        seen &= options.window_right < 0 || column <= center + options.window_right;
        const double cap = options.softcap;
        const double score = cap > 0 ? cap * std::tanh(scores[at] / cap) : scores[at];
        p[at] = seen ? std::exp(score) : 0.0;
        sum += p[at];
      }
      for (std::size_t j = 0; j < columns && sum > 0.0; ++j)
        p[row * columns + j] /= sum;
      lse.push_back(std::log(sum));
    }
    return p;
  }
};

struct Setting {
  const char* name;
  float softcap;
  std::int64_t left, right, shift;
  bool mask, sinks;
};

const Setting kSettings[] = {
    {"full", 0, -1, -1, 0, false, false},
    {"causal", 0, -1, 0, 6, false, false},
    {"rows without keys", 0, -1, 0, -4, false, false},
    {"window", 0, 3, 1, 2, false, false},
    {"mask", 0, -1, -1, 0, true, false},
    {"softcap", 2.0f, -1, 0, 6, false, false},
    {"sinks", 0, -1, -1, 0, false, true},
    {"all", 1.5f, 4, 2, 3, true, true},
};

TEST(Softmax, ForwardAndGradientsOfEverySetting) {
  Random random;
  for (const Setting& setting : kSettings) {
    SCOPED_TRACE(setting.name);
    const Shape shape{2, 3, 7, 13};
    const Tensor scores = random.normal(shape), dp = random.normal(shape);
    const Tensor sinks = random.normal({3});
    Tensor mask = Tensor::empty({2, 1, 7, 13}, DType::boolean);
    for (std::int64_t i = 0; i < mask.numel(); ++i)
      mask.as<bool>()[i] = random.below(3) > 0;
    ops::SoftmaxOptions options{.softcap = setting.softcap,
                                .window_left = setting.left,
                                .window_right = setting.right,
                                .shift = setting.shift};
    if (setting.mask) options.mask = mask;
    if (setting.sinks) options.sinks = sinks;
    Model model{3, 7, 13, options, {}};
    if (setting.mask) model.mask = values_of(mask.view().broadcast_to(shape));
    const Values given = setting.sinks ? values_of(sinks) : Values{};

    const Tensor p = poisoned(shape), lse = poisoned({2, 3, 7});
    ops::softmax(scores, options, p, lse);
    const Values v = values_of(scores);
    expect_near(p, model.run(v, given), 1e-5, "p");
    expect_near(lse, model.lse, 1e-5, "lse");

    const Tensor ds = poisoned(shape);
    const Tensor dsinks = Tensor::zeros({3}, DType::float32);
    ops::softmax_backward(dp, {.probabilities = p, .scores = scores, .lse = lse}, options, ds,
                          setting.sinks ? dsinks.view() : TensorView{});
    const auto by_scores = [&](const Values& x) { return weighted_sum(dp, model.run(x, given)); };
    const auto by_sinks = [&](const Values& x) { return weighted_sum(dp, model.run(v, x)); };
    expect_near(ds, numeric_gradient(by_scores, v), 1e-4, "dscores");
    if (setting.sinks) expect_near(dsinks, numeric_gradient(by_sinks, given), 1e-4, "dsinks");
  }
}

TEST(Softmax, InPlaceInSixteenBits) {
  Random random;
  const Tensor scores = random.normal({1, 2, 5, 300}, DType::bfloat16);
  Model model{2, 5, 300, {}, {}};
  const Values expected = model.run(values_of(scores), {});
  ops::softmax(scores, {}, scores);
  expect_near(scores, expected, 1.0 / 256, "p");
}

TEST(Softmax, HugeScoresDoNotOverflow) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Tensor scores = Tensor::from({1e30f, 1e30f, -1e30f, -kInfinity}, {1, 1, 1, 4});
  ops::softmax(scores, {}, scores);
  expect_near(scores, Values{0.5, 0.5, 0, 0}, 0.0, "p");
  const Tensor hidden = Tensor::from({-kInfinity, -kInfinity}, {1, 1, 1, 2});
  ops::softmax(hidden, {}, hidden);
  expect_near(hidden, Values{0, 0}, 0.0, "a row that sees nothing");
}

TEST(Softmax, SaysWhatIsMissing) {
  const Tensor p = Tensor::zeros({1, 1, 2, 2}, DType::float32);
  expect_error([&] { ops::softmax_backward(p, {.probabilities = p}, {.softcap = 1.0f}, p); },
               {"[softmax_backward]", "scores must be given"});
  const Tensor mask = mask_of({"111"});
  expect_error([&] { ops::softmax(p, {.mask = mask}, p); }, {"[1,3]", "[1,1,2,2]"});
}

TEST(AttentionDropout, KeepsWhatAttentionKeeps) {
  Random random;
  const Dropout dropout{.p = 0.3f, .seed = 77, .offset = 5};
  // Uniform attention to the identity: out shows the dropout pattern of flash_attn_func itself.
  const std::int64_t n = 40;
  const Tensor q = Tensor::zeros({2, n, 3, n}, DType::float32);
  const Tensor v = Tensor::zeros({2, n, 3, n}, DType::float32);
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t j = 0; j < n; ++j) {
      for (std::int64_t h = 0; h < 3; ++h)
        v.as<float>()[((b * n + j) * 3 + h) * n + j] = 1.0f;
    }
  }
  AttentionOptions options;
  options.dropout = dropout;
  const AttentionResult flash = flash_attn_func(q, q, v, options);
  const Tensor p = Tensor::empty({2, 3, n, n}, DType::float32);
  fill(p, 1.0 / static_cast<double>(n));
  ops::attention_dropout(p, dropout, p);
  expect_near(p, flash.out.view().transpose(1, 2), 1e-6, "kept");
  const Values kept = values_of(p);
  const auto zeros = std::count(kept.begin(), kept.end(), 0.0);
  EXPECT_NEAR(static_cast<double>(zeros) / static_cast<double>(kept.size()), 0.3, 0.03);
}

}  // namespace
}  // namespace flashmha::tests
