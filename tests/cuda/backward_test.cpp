// The backward on a GPU beyond the list of cases: bits, the CPU beside it, memory that runs out.
#include <algorithm>
#include <vector>

#include "flashmha/attention.h"
#include "flashmha/error.h"
#include "flashmha/plan.h"
#include "tests/attention/device_call.h"
#include "tests/attention/instance.h"
#include "tests/attention/plain.h"
#include "tests/compare.h"
#include "tests/core/expect_error.h"
#include "tests/cuda/gpu.h"

namespace flashmha::tests {
using test::expect_error;

namespace {

using DeviceBackward = OnGpu;

Tensor to_host(const TensorView& tensor) {
  Tensor host = Tensor::empty(tensor.shape, tensor.dtype);
  copy(tensor, host);
  return host;
}

AttentionGradients gradients_of(const AttentionCall& c, const TensorView& dout,
                                const AttentionOptions& options) {
  if (c.sequences.cu_seqlens_q.defined()) {
    const AttentionResult result = flash_attn_varlen_func(c.q, c.k, c.v, c.sequences, options);
    return flash_attn_varlen_backward(dout, c.q, c.k, c.v, result, c.sequences, options);
  }
  const AttentionResult result = flash_attn_func(c.q, c.k, c.v, options);
  return flash_attn_backward(dout, c.q, c.k, c.v, result, options);
}

// What the host's instance holds, on the GPU.
struct OnDevice {
  Instance instance;
  AttentionCall host;
  DeviceCall device;

  explicit OnDevice(const Case& spec)
      : instance(spec, test_seed()), host(with_dout(instance)), device(host, kGpu) {}
  static AttentionCall with_dout(const Instance& instance) {
    AttentionCall call = instance.call;
    call.dout = instance.dout;
    return call;
  }
  AttentionGradients gradients(bool deterministic) const {
    const AttentionCall& c = device.call();
    AttentionOptions options = c.options;
    options.deterministic = deterministic;
    return gradients_of(c, c.dout, options);
  }
};

// dk and dv always; dq when it is asked for. Blocks that race would show here.
void expect_the_same_bits(const Case& spec, bool deterministic, int repetitions) {
  const OnDevice call(spec);
  const AttentionGradients first = call.gradients(deterministic);
  const Tensor dq = to_host(first.dq);
  const Tensor dk = to_host(first.dk);
  const Tensor dv = to_host(first.dv);
  for (int repeat = 0; repeat < repetitions; ++repeat) {
    const AttentionGradients again = call.gradients(deterministic);
    ASSERT_TRUE(same_bits(to_host(again.dk), dk)) << repeat;
    ASSERT_TRUE(same_bits(to_host(again.dv), dv)) << repeat;
    if (deterministic) {
      ASSERT_TRUE(same_bits(to_host(again.dq), dq)) << repeat;
    }
  }
}

Case race_case(std::int64_t head_dim) {
  return {.dtype = DType::bfloat16,
          .batch = 2,
          .seqlen_q = 515,
          .seqlen_k = 777,
          .num_heads_kv = 2,
          .head_dim = head_dim,
          .causal = true};
}

TEST_F(DeviceBackward, TheSameBitsEveryTime) {
  constexpr int kRepetitions = 250;
  expect_the_same_bits(race_case(128), false, kRepetitions);
  expect_the_same_bits(race_case(128), true, kRepetitions);
}

TEST_F(DeviceBackward, TheSameBitsInEveryConfiguration) {
  constexpr int kRepetitions = 20;
  Case options = race_case(64);
  options.dropout = 0.2f;
  options.softcap = 20.0f;
  options.alibi = true;
  Case ragged = race_case(96);
  ragged.layout = Layout::ragged;
  ragged.lengths_q = ragged.lengths_k = Lengths::random;
  for (const Case& spec : {race_case(64), race_case(256), options, ragged})
    expect_the_same_bits(spec, true, kRepetitions);
}

// Gradients of sinks and biases are always added up in one order.
TEST_F(DeviceBackward, TheSameBitsOfBiasAndSinks) {
  Case spec = race_case(64);
  spec.bias = {.given = true, .varies = kHead | kColumn};
  spec.sinks = true;
  const OnDevice call(spec);
  const AttentionGradients first = call.gradients(false);
  const Tensor dbias = to_host(first.dbias);
  const Tensor dsinks = to_host(first.dsinks);
  for (int repeat = 0; repeat < 20; ++repeat) {
    const AttentionGradients again = call.gradients(false);
    ASSERT_TRUE(same_bits(to_host(again.dbias), dbias)) << repeat;
    ASSERT_TRUE(same_bits(to_host(again.dsinks), dsinks)) << repeat;
  }
}

// How large the terms are that dsinks of an instance is the sum of.
double term_of_dsinks(Instance& instance) {
  const AttentionCall& c = instance.call;
  const AttentionResult forward = flash_attn_func(c.q, c.k, c.v, c.options);
  const Twin twin(instance.backward_call(forward.out, forward.lse));
  return plain_backward(make_problem(twin.call), twin.call, c.q.dtype).dsinks;
}

// The CPU's results on the same inputs: both round to 16 bits once, at the end, and probabilities
// and gradients of scores before products on a GPU. The terms of dsinks hold each one's own out,
// rounded, and may cancel in every one of few heads.
TEST_F(DeviceBackward, TheCpuGivesTheSame) {
  Case everything = race_case(72);
  everything.dropout = 0.1f;
  everything.alibi = true;
  everything.softcap = 30.0f;
  everything.sinks = true;
  everything.bias = {.given = true, .varies = kHead | kRow | kColumn};
  for (const Case& spec : {race_case(64), race_case(128), race_case(256), everything}) {
    SCOPED_TRACE(describe(spec));
    OnDevice call(spec);
    const AttentionGradients cpu = gradients_of(call.host, call.host.dout, call.host.options);
    const double dsinks_term = term_of_dsinks(call.instance);
    const auto expect_near = [](const char* name, const TensorView& on_gpu,
                                const TensorView& on_cpu, double term) {
      if (!on_cpu.defined()) return;
      const Tensor exact = cast(on_cpu, DType::float64);
      constexpr double kRounding = 0x1p-8;  // to bfloat16
      const Comparison comparison = compare(name, to_host(on_gpu), exact,
                                            4 * kRounding * max_abs(exact) + 2 * kRounding * term);
      EXPECT_TRUE(comparison.ok) << comparison.message;
    };
    for (const bool deterministic : {false, true}) {
      const AttentionGradients gpu = call.gradients(deterministic);
      expect_near("dq", gpu.dq, cpu.dq, 0.0);
      expect_near("dk", gpu.dk, cpu.dk, 0.0);
      expect_near("dv", gpu.dv, cpu.dv, 0.0);
      expect_near("dbias", gpu.dbias, cpu.dbias, 0.0);
      expect_near("dsinks", gpu.dsinks, cpu.dsinks, dsinks_term);
    }
  }
}

TEST_F(DeviceBackward, NoMemoryForTheResultsLeaksNothing) {
  const OnDevice call(race_case(64));
  const std::size_t before = memory_stats(kGpu).current_bytes;
  std::vector<Tensor> hogs;  // in pieces that get smaller, until little is left
  for (std::int64_t bytes = std::int64_t{1} << 36; bytes >= std::int64_t{1} << 16; bytes /= 2) {
    try {
      for (;;)
        hogs.push_back(Tensor::empty({bytes}, DType::boolean, kGpu));
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::out_of_memory) << error.what();
    }
  }
  const std::size_t full = memory_stats(kGpu).current_bytes;
  for (int i = 0; i < 3; ++i) {
    expect_error(ErrorCode::out_of_memory, {"[allocate]", "cuda:0"},
                 [&] { call.gradients(false); });
    EXPECT_EQ(memory_stats(kGpu).current_bytes, full);
  }
  hogs.clear();
  EXPECT_EQ(memory_stats(kGpu).current_bytes, before);
  call.gradients(false);
  synchronize(kGpu);
}

}  // namespace
}  // namespace flashmha::tests
