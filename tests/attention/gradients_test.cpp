// Every gradient against finite differences in float64, through the public functions.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/attention/api.h"
#include "tests/compare.h"

namespace flashmha::tests {
namespace {

// sum(out * dout) + sum(lse * dlse): its gradients are what backward returns.
double loss(const Instance& instance) {
  const AttentionResult result = forward(instance.call);
  double sum = 0;
  for (std::int64_t i = 0; i < result.out.numel(); ++i) {
    sum += result.out.as<double>()[i] * element<double>(instance.dout, i);
  }
  for (std::int64_t i = 0; instance.dlse.defined() && i < result.lse.numel(); ++i) {
    const double lse = result.lse.as<double>()[i];
    if (lse > -INFINITY) sum += lse * element<double>(instance.dlse, i);  // else it is a constant
  }
  return sum;
}

// (L(x + h) - L(x - h)) / 2h for every element x of `input`; the error is of the order h^2.
void expect_gradient(const std::string& name, const Instance& instance, const TensorView& input,
                     const Tensor& gradient) {
  constexpr double kStep = 1e-5;
  const Tensor numeric = Tensor::empty(input.shape, DType::float64);
  for (std::int64_t i = 0; i < input.numel(); ++i) {
    double& x = element<double>(input, i);
    const double original = x;
    x = original + kStep;
    const double above = loss(instance);
    x = original - kStep;
    const double below = loss(instance);
    x = original;
    numeric.as<double>()[i] = (above - below) / (2 * kStep);
  }
  const Comparison comparison = compare(name, gradient, numeric, 1e-7 * (1 + max_abs(numeric)));
  EXPECT_TRUE(comparison.ok) << describe(instance.spec) << "\n" << comparison.message;
}

void expect_gradients(Case spec) {
  spec.dtype = DType::float64;
  spec.narrow_extras = true;  // bias and sinks in float64 too
  spec.dlse = true;
  const Instance instance(spec, test_seed());
  const AttentionGradients gradients = backward(instance, forward(instance.call));
  const AttentionCall& call = instance.call;
  expect_gradient("dq", instance, call.q, gradients.dq);
  expect_gradient("dk", instance, call.k, gradients.dk);
  expect_gradient("dv", instance, call.v, gradients.dv);
  if (call.options.bias.defined()) {
    expect_gradient("dbias", instance, call.options.bias, gradients.dbias);
  }
  if (call.options.sinks.defined()) {
    expect_gradient("dsinks", instance, call.options.sinks, gradients.dsinks);
  }
}

Case small() {
  return {.batch = 2,
          .seqlen_q = 4,
          .seqlen_k = 6,
          .num_heads_q = 4,
          .num_heads_kv = 2,
          .head_dim = 3,
          .head_dim_v = 2};
}

TEST(C6, gradient_of_plain_attention_and_lse) {
  expect_gradients(small());
}

TEST(C6, gradients_with_causal_mask_and_empty_rows) {
  Case c = small();
  c.causal = true;
  expect_gradients(c);
  std::swap(c.seqlen_q, c.seqlen_k);  // the first rows see nothing
  expect_gradients(c);
  c.align = MaskAlign::top_left;
  expect_gradients(c);
}

TEST(C6, gradients_with_window) {
  Case c = small();
  c.window_left = 1;
  c.window_right = 1;
  expect_gradients(c);
}

TEST(C6, gradients_with_softcap_and_dropout) {
  Case c = small();
  c.softcap = 2.0f;
  c.dropout = 0.4f;
  expect_gradients(c);
}

TEST(C6, gradients_with_sinks) {
  Case c = small();
  c.sinks = true;
  c.mask = {true, kBatch | kRow};
  expect_gradients(c);
}

TEST(B7, gradient_of_bias_in_every_broadcast_pattern) {
  for (unsigned varies = 0; varies < 16; ++varies) {
    Case c = small();
    c.bias = {true, varies};
    c.softcap = varies % 2 == 0 ? 3.0f : 0.0f;
    expect_gradients(c);
  }
}

TEST(B7, gradients_with_boolean_mask) {
  Case c = small();
  c.mask = {true, kHead | kRow | kColumn};
  expect_gradients(c);
}

TEST(B6, gradients_of_ragged_batches) {
  Case c = small();
  c.layout = Layout::ragged;
  c.batch = 4;
  c.lengths_q = Lengths::random;
  c.lengths_k = Lengths::some_zero;
  c.bias = {true, kHead | kColumn};
  c.causal = true;
  expect_gradients(c);
  c.seqused = true;
  c.sinks = true;
  expect_gradients(c);
}

TEST(C5, gradients_with_all_options_at_once) {
  Case c = small();
  c.causal = c.alibi = c.sinks = c.strided = true;
  c.window_left = 3;
  c.softcap = 4.0f;
  c.dropout = 0.25f;
  c.softmax_scale = 0.7f;
  c.bias = {true, kBatch | kRow | kColumn};
  c.mask = {true, kHead | kColumn};
  expect_gradients(c);
  c.layout = Layout::ragged;
  c.batch = 3;
  c.lengths_q = c.lengths_k = Lengths::random;
  c.seqused = true;
  expect_gradients(c);
}

// A partial result of a longer sequence is differentiated with the whole sequence's out and lse:
// the gradients of two halves of the keys are the gradients of all.
TEST(C6, gradients_of_key_halves_add_up) {
  Case c = small();
  c.dtype = DType::float64;
  const Instance instance(c, test_seed());
  const AttentionCall& call = instance.call;
  const AttentionResult whole = forward(call);
  const AttentionGradients expected = backward(instance, whole);
  const Tensor dq = Tensor::zeros(call.q.shape, DType::float64);
  for (const std::int64_t first : {std::int64_t{0}, c.seqlen_k / 2}) {
    const std::int64_t last = first + c.seqlen_k / 2;
    const AttentionGradients half =
        flash_attn_backward(instance.dout, call.q, call.k.slice(1, first, last),
                            call.v.slice(1, first, last), whole, call.options);
    EXPECT_TRUE(compare("dk", half.dk, expected.dk.view().slice(1, first, last), 1e-13).ok);
    EXPECT_TRUE(compare("dv", half.dv, expected.dv.view().slice(1, first, last), 1e-13).ok);
    for (std::int64_t i = 0; i < dq.numel(); ++i)
      dq.as<double>()[i] += half.dq.as<double>()[i];
  }
  const Comparison comparison = compare("dq", dq, expected.dq, 1e-13);
  EXPECT_TRUE(comparison.ok) << comparison.message;
}

}  // namespace
}  // namespace flashmha::tests
