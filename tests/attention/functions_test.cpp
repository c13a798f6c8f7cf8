// The public functions as a user calls them, forward and backward: rows A1 and B1.
#include <gtest/gtest.h>

#include <string>

#include "flashmha/plan.h"
#include "tests/attention/api.h"
#include "tests/compare.h"

namespace flashmha::tests {
namespace {

AttentionGradients gradients_of(const AttentionCall& call, const AttentionResult& result,
                                const TensorView& dout, const TensorView& dlse) {
  if (call.sequences.cu_seqlens_q.defined()) {
    return flash_attn_varlen_backward(dout, call.q, call.k, call.v, result, call.sequences,
                                      call.options, dlse);
  }
  return flash_attn_backward(dout, call.q, call.k, call.v, result, call.options, dlse);
}

// What a few roundings to the dtype may do to the largest elements.
double tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16: return 0x1p-6;
    case DType::float16: return 0x1p-9;
    default: return 0x1p-16;
  }
}

// Forward and backward in every type against the same functions in float64, which the reference
// serves. The exact rule of accuracy is tests/attention/run_case.h's; this is about the functions.
void expect_right(Case spec) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    spec.dtype = dtype;
    const Instance instance(spec, test_seed());
    const AttentionResult result = forward(instance.call);
    const AttentionGradients gradients =
        gradients_of(instance.call, result, instance.dout, instance.dlse);

    const Twin exact(instance.call);
    const AttentionResult exact_result = forward(exact.call);
    const AttentionGradients exact_gradients =
        gradients_of(exact.call, exact_result, cast(instance.dout, DType::float64),
                     cast(instance.dlse, DType::float64));
    const auto expect_near = [&](const char* name, const Tensor& actual, const Tensor& expected) {
      const Comparison comparison =
          compare(name, actual, expected, tolerance_of(dtype) * (1 + max_abs(expected)));
      EXPECT_TRUE(comparison.ok) << describe(spec) << "\n" << comparison.message;
    };
    expect_near("out", result.out, exact_result.out);
    expect_near("lse", result.lse, exact_result.lse);
    expect_near("dq", gradients.dq, exact_gradients.dq);
    expect_near("dk", gradients.dk, exact_gradients.dk);
    expect_near("dv", gradients.dv, exact_gradients.dv);
  }
}

TEST(A1, flash_attn_func_forward_and_backward) {
  Case spec{.seqlen_q = 113, .seqlen_k = 203, .num_heads_q = 6, .num_heads_kv = 2, .dlse = true};
  expect_right(spec);
  spec.causal = true;
  expect_right(spec);
}

TEST(A1, flash_attn_varlen_func_forward_and_backward) {
  Case spec{.layout = Layout::ragged,
            .batch = 4,
            .seqlen_q = 113,
            .seqlen_k = 203,
            .num_heads_q = 6,
            .num_heads_kv = 2,
            .lengths_q = Lengths::random,
            .lengths_k = Lengths::some_zero,
            .dlse = true};
  expect_right(spec);
  spec.causal = true;
  expect_right(spec);
}

// Parts of a packed tensor: dimension -3.
TensorView part(const TensorView& packed, std::int64_t index) {
  return packed.select(packed.rank() - 3, index);
}

// A call whose gradients are written into views of packed tensors gives what the function gives
// that allocates them, bit for bit.
void expect_same_gradients(AttentionCall call, const AttentionResult& result,
                           const TensorView& dout) {
  const AttentionGradients expected = gradients_of(call, result, dout, {});
  call.out = result.out;
  call.lse = result.lse;
  call.dout = dout;
  run(call);
  EXPECT_TRUE(same_bits(call.dq, expected.dq));
  EXPECT_TRUE(same_bits(call.dk, expected.dk));
  EXPECT_TRUE(same_bits(call.dv, expected.dv));
}

TEST(B1, gradients_of_packed_functions_go_into_one_tensor) {
  Memory memory(test_seed());
  const AttentionOptions options{.causal = true};
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const TensorView qkv = memory.normal({2, 37, 3, 4, 32}, dtype, true);
    const TensorView dqkv = memory.poisoned(qkv.shape, dtype, true);
    const TensorView dout = memory.normal({2, 37, 4, 32}, dtype, true);
    AttentionCall call{.q = part(qkv, 0), .k = part(qkv, 1), .v = part(qkv, 2)};
    call.dq = part(dqkv, 0), call.dk = part(dqkv, 1), call.dv = part(dqkv, 2);
    call.options = options;
    expect_same_gradients(call, flash_attn_qkvpacked_func(qkv, options), dout);

    // Two key heads: kv packed, q apart.
    const TensorView kv = memory.normal({2, 41, 2, 2, 32}, dtype, true);
    const TensorView dkv = memory.poisoned(kv.shape, dtype, true);
    call.k = part(kv, 0), call.v = part(kv, 1);
    call.dk = part(dkv, 0), call.dv = part(dkv, 1);
    expect_same_gradients(call, flash_attn_kvpacked_func(call.q, kv, options), dout);
  }
  EXPECT_TRUE(memory.borders_intact());
}

TEST(B1, gradients_of_packed_varlen_functions_go_into_one_tensor) {
  Memory memory(test_seed());
  const AttentionOptions options{.causal = true};
  const TensorView ends = memory.indices({0, 13, 13, 50}, {4});
  const Sequences sequences{
      .cu_seqlens_q = ends, .cu_seqlens_k = ends, .max_seqlen_q = 37, .max_seqlen_k = 37};
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const TensorView qkv = memory.normal({50, 3, 4, 32}, dtype, true);
    const TensorView dqkv = memory.poisoned(qkv.shape, dtype, true);
    const TensorView dout = memory.normal({50, 4, 32}, dtype, true);
    AttentionCall call{.q = part(qkv, 0), .k = part(qkv, 1), .v = part(qkv, 2)};
    call.dq = part(dqkv, 0), call.dk = part(dqkv, 1), call.dv = part(dqkv, 2);
    call.sequences = sequences;
    call.options = options;
    expect_same_gradients(call, flash_attn_varlen_qkvpacked_func(qkv, sequences, options), dout);

    const TensorView kv = memory.normal({50, 2, 2, 32}, dtype, true);
    const TensorView dkv = memory.poisoned(kv.shape, dtype, true);
    call.k = part(kv, 0), call.v = part(kv, 1);
    call.dk = part(dkv, 0), call.dv = part(dkv, 1);
    expect_same_gradients(call, flash_attn_varlen_kvpacked_func(call.q, kv, sequences, options),
                          dout);
  }
  EXPECT_TRUE(memory.borders_intact());
}

}  // namespace
}  // namespace flashmha::tests
