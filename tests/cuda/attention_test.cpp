// Attention on a GPU beyond the list of cases (test_flash_attention --device cuda): the public
// functions, errors, and bits.
#include <cmath>

#include "flashmha/attention.h"
#include "flashmha/error.h"
#include "flashmha/plan.h"
#include "tests/attention/device_call.h"
#include "tests/attention/instance.h"
#include "tests/compare.h"
#include "tests/core/expect_error.h"
#include "tests/cuda/gpu.h"

namespace flashmha::tests {
using test::expect_error;

namespace {

using DeviceAttention = OnGpu;

Tensor to_host(const TensorView& tensor) {
  Tensor host = Tensor::empty(tensor.shape, tensor.dtype);
  copy(tensor, host);
  return host;
}

TEST_F(DeviceAttention, TheSameBitsEveryTime) {
  const Case spec{.dtype = DType::bfloat16,
                  .batch = 4,
                  .seqlen_q = 515,
                  .seqlen_k = 777,
                  .num_heads_kv = 2,
                  .head_dim = 128,
                  .causal = true};
  const Instance instance(spec, test_seed());
  const DeviceCall call(instance.call, kGpu);
  const auto attend = [&] {
    return flash_attn_func(call.call().q, call.call().k, call.call().v, call.call().options);
  };
  const AttentionResult first = attend();
  const Tensor out = to_host(first.out);
  const Tensor lse = to_host(first.lse);
  for (int repeat = 0; repeat < 250; ++repeat) {
    const AttentionResult again = attend();
    ASSERT_TRUE(same_bits(to_host(again.out), out)) << repeat;
    ASSERT_TRUE(same_bits(to_host(again.lse), lse)) << repeat;
  }
}

// A sequence alone, and among others.
TEST_F(DeviceAttention, TheSameBitsInAnyBatch) {
  const Case spec{.dtype = DType::float16, .batch = 3, .seqlen_q = 200, .seqlen_k = 300};
  const Instance instance(spec, test_seed());
  const DeviceCall call(instance.call, kGpu);
  const AttentionCall& c = call.call();
  const Tensor all = to_host(flash_attn_func(c.q, c.k, c.v).out);
  for (std::int64_t b = 0; b < spec.batch; ++b) {
    const auto row = [&](const TensorView& tensor) { return tensor.slice(0, b, b + 1); };
    const Tensor alone = to_host(flash_attn_func(row(c.q), row(c.k), row(c.v)).out);
    EXPECT_TRUE(same_bits(alone, all.view().slice(0, b, b + 1))) << b;
  }
}

TEST_F(DeviceAttention, RowsThatBelongToNoSequence) {
  const Case spec{.layout = Layout::ragged,
                  .dtype = DType::bfloat16,
                  .batch = 3,
                  .lengths_q = Lengths::some_zero,
                  .lengths_k = Lengths::random,
                  .strided = true};
  const Instance instance(spec, test_seed());
  const DeviceCall call(instance.call, kGpu);
  const AttentionCall& c = call.call();
  const AttentionResult result = flash_attn_varlen_func(c.q, c.k, c.v, c.sequences, c.options);
  const std::int64_t total = c.q.size(0);
  const std::int64_t owned = instance.call.sequences.cu_seqlens_q.as<std::int32_t>()[spec.batch];
  ASSERT_LT(owned, total);
  const Tensor out = to_host(result.out);
  const Tensor lse = to_host(result.lse);
  EXPECT_EQ(max_abs(out.view().slice(0, owned, total)), 0.0);
  for (std::int64_t head = 0; head < spec.num_heads_q; ++head) {
    for (std::int64_t row = owned; row < total; ++row)
      EXPECT_EQ(lse.as<float>()[head * total + row], -INFINITY);
  }
}

// No allocation inside a launch: what a graph needs.
TEST_F(DeviceAttention, APlanRunsWithoutAllocating) {
  const Instance instance({.dtype = DType::bfloat16}, test_seed());
  const DeviceCall call(instance.call, kGpu);
  const Plan plan = make_plan(call.call());
  EXPECT_EQ(plan.kernel->name, "sm80_forward");
  const Tensor workspace =
      Tensor::empty({static_cast<std::int64_t>(plan.workspace_bytes) + 1}, DType::boolean, kGpu);
  const std::span<std::byte> bytes{static_cast<std::byte*>(workspace.view().data),
                                   plan.workspace_bytes};
  reset_peak_memory(kGpu);
  const std::size_t before = memory_stats(kGpu).current_bytes;
  run(plan, call.call(), bytes);
  synchronize(kGpu);
  EXPECT_EQ(memory_stats(kGpu).peak_bytes, before);
}

// Index tensors of a GPU are not checked: wrong ones must do no harm.
TEST_F(DeviceAttention, WrongIndicesStayInsideTheTensors) {
  const Case spec{.layout = Layout::ragged_paged, .dtype = DType::bfloat16, .seqlen_k = 200};
  const Instance instance(spec, test_seed());
  fill(instance.call.sequences.block_table, 123456789.0);
  instance.call.sequences.cu_seqlens_q.as<std::int32_t>()[1] = -5;
  instance.call.sequences.cu_seqlens_q.as<std::int32_t>()[2] = 1 << 30;
  instance.call.sequences.cu_seqlens_k.as<std::int32_t>()[2] = 1 << 30;
  const DeviceCall call(instance.call, kGpu);
  const AttentionCall& c = call.call();
  flash_attn_varlen_func(c.q, c.k, c.v, c.sequences, c.options);
  synchronize(kGpu);  // throws if a kernel failed
}

TEST_F(DeviceAttention, Float32IsRefusedWithAdvice) {
  const Tensor q = Tensor::zeros({1, 4, 2, 8}, DType::float32, kGpu);
  expect_error(ErrorCode::invalid_argument, {"float32", "bfloat16", "Convert q, k and v"},
               [&] { flash_attn_func(q, q, q); });
}

TEST_F(DeviceAttention, MixedDevicesAreRefused) {
  const Tensor q = Tensor::zeros({1, 4, 2, 8}, DType::bfloat16, kGpu);
  const Tensor k = Tensor::zeros({1, 4, 2, 8}, DType::bfloat16);
  expect_error(ErrorCode::invalid_argument, {"k must be on cuda:0 like q"},
               [&] { flash_attn_func(q, k, q); });
}

}  // namespace
}  // namespace flashmha::tests
