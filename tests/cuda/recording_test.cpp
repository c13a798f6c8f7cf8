// Graph: recorded work, its memory, and what it refuses.
#include "flashmha/graph.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "core/located.h"
#include "flashmha/error.h"
#include "flashmha/ops.h"
#include "flashmha/padding.h"
#include "flashmha/random.h"
#include "tests/compare.h"
#include "tests/core/expect_error.h"
#include "tests/cuda/gpu.h"

namespace flashmha::tests {
namespace {

using test::expect_error;
using DeviceRecording = OnGpu;

// y = (x + x) + (x + x), through memory that is allocated and freed on the way.
void quadruple(const TensorView& x, const TensorView& y) {
  const Tensor twice = Tensor::empty(x.shape, x.dtype, x.device);
  ops::add(x, x, twice);
  {
    const Tensor copied = clone(twice);
    ops::add(copied, twice, twice);
  }
  const Tensor late = clone(twice);
  copy(late, y);
}

TEST_F(DeviceRecording, ReadsWhatIsInItsTensorsNow) {
  const Tensor x = Tensor::zeros({1000}, DType::float32, kGpu);
  const Tensor y = Tensor::zeros({1000}, DType::float32, kGpu);
  Graph graph(kGpu);
  for (int run = 0; run < 6; ++run) {
    fill(x, run);
    graph.run([&] { quadruple(x, y); });
    EXPECT_EQ(graph.is_recorded(), run > 0);
    const Tensor host = to_device(y, {});
    EXPECT_EQ(host.as<float>()[0], 4.0f * static_cast<float>(run));
    EXPECT_EQ(host.as<float>()[999], 4.0f * static_cast<float>(run));
  }
  graph.reset();
  EXPECT_FALSE(graph.is_recorded());
  graph.run([&] { quadruple(x, y); });
  EXPECT_EQ(to_device(y, {}).as<float>()[0], 20.0f);
}

TEST_F(DeviceRecording, ItsMemoryIsOneBlockAndComesBack) {
  const Tensor x = Tensor::zeros({1 << 20}, DType::float32, kGpu);
  const Tensor y = Tensor::zeros({1 << 20}, DType::float32, kGpu);
  const std::size_t before = memory_stats(kGpu).current_bytes;
  {
    Graph graph(kGpu);
    reset_peak_memory(kGpu);
    graph.run([&] { quadruple(x, y); });
    EXPECT_EQ(memory_stats(kGpu).current_bytes, before);
    EXPECT_EQ(memory_stats(kGpu).peak_bytes, before + 2 * x.view().bytes());
    graph.run([&] { quadruple(x, y); });
    reset_peak_memory(kGpu);
    graph.run([&] { quadruple(x, y); });
    EXPECT_EQ(memory_stats(kGpu).current_bytes, before + 2 * x.view().bytes());
    EXPECT_EQ(memory_stats(kGpu).peak_bytes, before + 2 * x.view().bytes());
  }
  EXPECT_EQ(memory_stats(kGpu).current_bytes, before);
}

TEST_F(DeviceRecording, WorkThatWaitsIsRefusedAndCanBeMended) {
  const Tensor x = Tensor::zeros({1000}, DType::float32, kGpu);
  const Tensor host = Tensor::zeros({1000}, DType::float32);
  const Tensor y = Tensor::zeros({1000}, DType::float32, kGpu);
  Graph graph(kGpu);
  for (const auto& waits : {std::function<void()>([&] { copy(x, host); }),
                            std::function<void()>([&] { copy(host, x); }),
                            std::function<void()>([&] { synchronize(kGpu); })}) {
    graph.reset();
    graph.run(waits);
    expect_error(ErrorCode::invalid_argument, {"recorded as a graph must not wait"},
                 [&] { graph.run(waits); });
    fill(x, 3.0);
    for (int run = 0; run < 3; ++run)
      graph.run([&] { quadruple(x, y); });
    EXPECT_EQ(to_device(y, {}).as<float>()[7], 12.0f);
  }
}

TEST_F(DeviceRecording, WorkThatKeepsMemoryIsRefused) {
  Tensor kept;
  Graph graph(kGpu);
  const auto keep = [&] { kept = Tensor::zeros({1000}, DType::float32, kGpu); };
  graph.run(keep);  // once is how tables are made
  expect_error(ErrorCode::invalid_argument, {"[Graph]", "allocate the same"},
               [&] { graph.run(keep); });
}

TEST_F(DeviceRecording, RunsOnTheCurrentStream) {
  const Tensor x = Tensor::zeros({1000}, DType::float32, kGpu);
  const Tensor y = Tensor::zeros({1000}, DType::float32, kGpu);
  cudaStream_t own = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking), cudaSuccess);
  {
    const CurrentStream current({own});
    Graph graph(kGpu);
    for (int run = 0; run < 4; ++run) {
      fill(x, run);
      graph.run([&] { quadruple(x, y); });
      EXPECT_EQ(to_device(y, {}).as<float>()[1], 4.0f * static_cast<float>(run));
    }
  }
  cudaStreamSynchronize(own);
  cudaStreamDestroy(own);
}

// With a bound, padding is removed and put back without a look of the host.
TEST_F(DeviceRecording, APaddedBatchWithABound) {
  const auto random = [](const Shape& shape, std::uint64_t seed) {
    Tensor tensor = Tensor::empty(shape, DType::bfloat16, kGpu);
    const Tensor host = Tensor::empty(shape, DType::bfloat16);
    model::fill_normal(host, seed);
    copy(host, tensor);
    return tensor;
  };
  const Tensor q = random({3, 40, 4, 64}, 1), k = random({3, 40, 2, 64}, 2);
  const Tensor v = random({3, 40, 2, 64}, 3), dout = random({3, 40, 4, 64}, 4);
  const Tensor host_mask = Tensor::zeros({3, 40}, DType::int32);
  for (std::int64_t i = 0; i < 120; ++i)
    host_mask.as<std::int32_t>()[i] = i % 40 >= i / 40 * 9;
  const Tensor mask = to_device(host_mask, kGpu);
  FlashAttentionMixin::Options options;
  options.attention.causal = true;
  options.attention.deterministic = true;
  const auto expected = FlashAttentionMixin::forward(q, k, v, mask, options);
  const auto wanted = FlashAttentionMixin::backward(dout, q, k, v, expected, options);
  options.bound = UnpadBound{.total = 110, .max_seqlen = 40};
  const Tensor out = Tensor::zeros(q.shape(), DType::bfloat16, kGpu);
  const Tensor dq = Tensor::zeros(q.shape(), DType::bfloat16, kGpu);
  const Tensor dk = Tensor::zeros(k.shape(), DType::bfloat16, kGpu);
  Graph graph(kGpu);
  for (int run = 0; run < 3; ++run) {
    for (const Tensor* result : {&out, &dq, &dk})
      fill(*result, 7.0);
    graph.run([&] {
      const auto result = FlashAttentionMixin::forward(q, k, v, mask, options);
      const auto gradients = FlashAttentionMixin::backward(dout, q, k, v, result, options);
      copy(result.out(), out);
      copy(gradients.dq, dq);
      copy(gradients.dk, dk);
    });
    EXPECT_TRUE(same_bits(to_device(out, {}), to_device(expected.out(), {}))) << run;
    EXPECT_TRUE(same_bits(to_device(dq, {}), to_device(wanted.dq, {}))) << run;
    EXPECT_TRUE(same_bits(to_device(dk, {}), to_device(wanted.dk, {}))) << run;
  }
}

TEST_F(DeviceRecording, SmallNumbersOfTheHostTravelWithoutWaiting) {
  for (const std::int64_t count : {1, 511, 512, 513, 4000}) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i)
      values[static_cast<std::size_t>(i)] = static_cast<float>(i) - 7.0f;
    const Tensor gpu = Tensor::zeros({count}, DType::float32, kGpu);
    const Tensor expected = Tensor::from(std::span<const float>(values), {count});
    copy(view_of(values.data(), {count}), gpu);
    std::ranges::fill(values, 0.0f);  // may be changed now
    EXPECT_TRUE(same_bits(to_device(gpu, {}), expected)) << count;
  }
}

}  // namespace
}  // namespace flashmha::tests
