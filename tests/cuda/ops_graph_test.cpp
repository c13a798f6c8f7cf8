// Operations inside of a graph: what waited or read device memory on the host would fail while it
// is recorded.
#include "flashmha/graph.h"
#include "flashmha/ops.h"
#include "tests/attention/instance.h"
#include "tests/compare.h"
#include "tests/cuda/twins.h"

namespace flashmha::tests {
namespace {

using DeviceGraph = OnGpu;
using Views = Twins::Views;

// The head of a model's training step, and the optimiser's.
void step(const Views& v) {
  ops::embedding(v[0], v[1], v[2], 1.0f);
  ops::rms_norm(v[2], v[3], {}, v[4], v[5]);
  ops::matmul(v[4], v[0].transpose(0, 1), v[6], {.bias = v[7]});
  ops::cross_entropy(v[6], v[1], -100, v[8], v[9]);
  const ops::CrossEntropySaved saved{.targets = v[1], .lse = v[9], .loss = v[8], .scale = v[13]};
  ops::cross_entropy_backward(v[6], saved, v[6]);
  ops::matmul(v[6].transpose(0, 1), v[4], v[10], {.beta = 1.0f});
  ops::bias_gradient(v[6], v[11]);
  ops::embedding_backward(v[4], v[1], v[10], 1.0f);
  const TensorView gradients[] = {v[10], v[11]};
  ops::gradient_norm(gradients, v[12]);
}

TEST_F(DeviceGraph, OperationsAreCaptured) {
  Twins twins(test_seed());
  constexpr std::int64_t kTokens = 48;
  constexpr std::int64_t kVocabulary = 64;
  constexpr std::int64_t kHidden = 128;
  const auto tensor = [&](const Shape& shape, DType dtype = DType::bfloat16) {
    const Tensor values = Tensor::empty(shape, dtype);
    model::fill_normal(values, static_cast<std::uint64_t>(twins.pick(1000)));
    twins.values(values);
  };
  tensor({kVocabulary, kHidden});
  twins.indices({kTokens}, DType::int64, kVocabulary);
  tensor({kTokens, kHidden});
  tensor({kHidden});
  tensor({kTokens, kHidden});
  tensor({kTokens}, DType::float32);
  tensor({kTokens, kVocabulary});
  tensor({kVocabulary});
  tensor({2}, DType::float32);
  tensor({kTokens}, DType::float32);
  tensor({kVocabulary, kHidden}, DType::float32);
  tensor({kVocabulary}, DType::float32);
  tensor({1}, DType::float32);
  twins.values(Tensor::from<float>({1.0f}, {1}));
  const Views& v = twins.gpu();
  const auto reset = [&] {
    for (const std::size_t i : {10, 11})
      fill(v[i], 0.0);
    fill(v[12], 7.0);
    synchronize(kGpu);
  };
  reset();
  step(v);
  const Tensor gradient = to_device(v[10], {});
  const Tensor norm = to_device(v[12], {});

  Graph graph(kGpu);
  for (int run = 0; run < 5; ++run) {
    reset();
    graph.run([&] { step(v); });
    synchronize(kGpu);
    EXPECT_EQ(graph.is_recorded(), run > 0);
    EXPECT_TRUE(same_bits(to_device(v[10], {}), gradient)) << run;
    EXPECT_TRUE(same_bits(to_device(v[12], {}), norm)) << run;
  }
}

}  // namespace
}  // namespace flashmha::tests
