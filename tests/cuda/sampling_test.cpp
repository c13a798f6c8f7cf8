// Choosing tokens on a GPU against the CPU.
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "core/located.h"
#include "flashmha/ops.h"
#include "flashmha/random.h"
#include "tests/compare.h"
#include "tests/cuda/gpu.h"
#include "tests/seed.h"

namespace flashmha::tests {
namespace {

using DeviceSampling = OnGpu;
using test::test_seed;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Drawn {
  Tensor tokens, weights;
};

Drawn draw(const TensorView& scores, const ops::SampleOptions& options,
           const TensorView& uniforms) {
  Drawn drawn{Tensor::empty({scores.size(0)}, DType::int32, scores.device),
              Tensor::empty(scores.shape, DType::float64, scores.device)};
  ops::sample(scores, options, uniforms, drawn.tokens, drawn.weights);
  return drawn;
}

// Exponentials and sums of the two differ in the last places, so a place on the border between two
// tokens may be decided differently: whether a token holds it up to such differences. Near the end,
// where tokens of next to no weight follow each other, borders are close.
bool may_be_drawn(std::int64_t token, std::span<const double> weights, double uniform) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  const auto index = static_cast<std::size_t>(token);
  if (token < 0 || index >= weights.size() || weights[index] <= 0.0) return false;
  const auto here = weights.begin() + token;
  const double before = std::accumulate(weights.begin(), here, 0.0);
  const double slack = 1e-12 * total;
  return before - slack <= uniform * total && uniform * total <= before + *here + slack;
}

void expect_equal(const TensorView& scores, const ops::SampleOptions& options,
                  const TensorView& uniforms) {
  const Drawn expected = draw(scores, options, uniforms);
  const Drawn on_gpu = draw(to_device(scores, kGpu), options, to_device(uniforms, kGpu));
  const Tensor tokens = to_device(on_gpu.tokens, {});
  const Tensor weights = to_device(on_gpu.weights, {});
  const auto vocabulary = static_cast<std::size_t>(scores.size(1));
  for (std::int64_t row = 0; row < scores.size(0); ++row) {
    const std::int32_t token = tokens.as<std::int32_t>()[row];
    if (token == expected.tokens.as<std::int32_t>()[row]) continue;
    const double* first = expected.weights.as<double>() + row * scores.size(1);
    const double uniform = uniforms.as<double>()[row];
    EXPECT_TRUE(may_be_drawn(token, {first, vocabulary}, uniform))
        << "row " << row << ": " << token << " at " << uniform << ", where the CPU draws "
        << expected.tokens.as<std::int32_t>()[row];
  }
  for (std::int64_t i = 0; i < weights.numel(); ++i) {
    const double wanted = expected.weights.as<double>()[i];
    ASSERT_NEAR(weights.as<double>()[i], wanted, 1e-13 * wanted) << i;
  }
  // Without weights the tokens are the same.
  const Tensor again = Tensor::empty({scores.size(0)}, DType::int32, kGpu);
  ops::sample(to_device(scores, kGpu), options, to_device(uniforms, kGpu), again);
  EXPECT_TRUE(same_bits(to_device(again, {}), tokens));
}

TEST_F(DeviceSampling, DrawsTheTokensOfTheCpu) {
  const std::vector<ops::SampleOptions> all = {
      {},
      {.temperature = 0.7},
      {.temperature = 1e-3},
      {.temperature = 3.0, .top_k = 1},
      {.temperature = 1.0, .top_k = 40},
      {.temperature = 1.0, .top_p = 0.9},
      {.temperature = 1.0, .top_p = 0.0},
      {.temperature = 1.0, .top_p = 0.3},
      {.temperature = 1.0, .min_p = 0.05},
      {.temperature = 0.8, .top_k = 100, .top_p = 0.95, .min_p = 0.01},
      {.temperature = 1.3, .top_k = 1 << 20, .top_p = 0.5, .min_p = 0.5}};
  std::uint64_t seed = test_seed();
  for (const std::int64_t vocabulary : {1, 2, 31, 1000, 1024, 1025, 50257, 128256}) {
    const std::int64_t rows = vocabulary > 10000 ? 3 : 16;
    const Tensor scores = Tensor::empty({rows, vocabulary}, DType::float32);
    const Tensor uniforms = Tensor::empty({rows}, DType::float64);
    for (const ops::SampleOptions& options : all) {
      model::fill_normal(scores, ++seed, 4.0);
      // Ties and tokens that never come.
      for (std::int64_t i = 0; i < scores.numel(); i += 3)
        scores.as<float>()[i] = std::round(scores.as<float>()[i]);
      for (std::int64_t i = 2; i < scores.numel(); i += 7)
        scores.as<float>()[i] = -kInfinity;
      for (std::int64_t row = 0; row < rows; ++row)
        scores.as<float>()[row * vocabulary] = static_cast<float>(row % 5);
      model::fill_normal(uniforms, ++seed);
      for (std::int64_t row = 0; row < rows; ++row) {
        double& place = uniforms.as<double>()[row];
        place -= std::floor(place);
        if (row == 0) place = 0.0;
        if (row == 1) place = 1.0 - 0x1p-53;
      }
      SCOPED_TRACE(vocabulary);
      expect_equal(scores, options, uniforms);
    }
  }
}

TEST_F(DeviceSampling, RowsThatCannotBeDrawnFromGiveMinusOne) {
  const Tensor scores = Tensor::from<float>({0.0f, NAN, 1.0f, 0.0f, kInfinity, 1.0f, -kInfinity,
                                             -kInfinity, -kInfinity, 0.0f, 1.0f, 2.0f},
                                            {4, 3});
  const Tensor uniforms = Tensor::zeros({4}, DType::float64);
  expect_equal(scores, {}, uniforms);
  const Tensor tokens =
      to_device(draw(to_device(scores, kGpu), {}, to_device(uniforms, kGpu)).tokens, {});
  for (const std::int64_t row : {0, 1, 2})
    EXPECT_EQ(tokens.as<std::int32_t>()[row], -1);
  EXPECT_EQ(tokens.as<std::int32_t>()[3], 0);
}

TEST_F(DeviceSampling, PenalisesWhatTheCpuPenalises) {
  const Tensor scores = Tensor::empty({3, 300}, DType::float32);
  model::fill_normal(scores, test_seed());
  const Tensor gpu = to_device(scores, kGpu);
  const Tensor seen =
      Tensor::from<std::int32_t>({0, 5, 299, -1, 1, 2, 3, 4, -1, 300, 1 << 30, -7}, {3, 4});
  ops::penalise(scores, seen, 1.7f);
  ops::penalise(gpu, to_device(seen, kGpu), 1.7f);
  EXPECT_TRUE(same_bits(to_device(gpu, {}), scores));
}

TEST_F(DeviceSampling, LargestElementsComeWithTheirIndices) {
  const Tensor scores = Tensor::empty({5, 3000}, DType::bfloat16);
  model::fill_normal(scores, test_seed());
  const Tensor gpu = to_device(scores, kGpu);
  const auto find = [](const TensorView& x) {
    Drawn found{Tensor::empty({5}, DType::int32, x.device),
                Tensor::empty({5}, DType::float32, x.device)};
    ops::argmax(x, found.tokens, found.weights);
    return found;
  };
  const Drawn expected = find(scores);
  const Drawn found = find(gpu);
  EXPECT_TRUE(same_bits(to_device(found.tokens, {}), expected.tokens));
  EXPECT_TRUE(same_bits(to_device(found.weights, {}), expected.weights));
}

}  // namespace
}  // namespace flashmha::tests
