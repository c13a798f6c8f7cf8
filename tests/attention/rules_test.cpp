// Every rule of the API: a call that breaks it is refused, and the message names the function, the
// rule and the values.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tests/attention/rules.h"

namespace flashmha::tests {
namespace {

constexpr std::int64_t kHuge = std::int64_t{1} << 62;

TensorView with_shape(TensorView view, const Shape& shape) {
  view.shape = shape;
  view.strides = contiguous_strides(shape);
  return view;
}

TEST(C5, rules_of_tensors) {
  expect_refusals(
      dense_spec(), "flash_attn_func",
      {{"rank of q",
        [](auto& c, auto&) { c.q = c.q.select(0, 0); },
        {"q must be [batch, seqlen_q, num_heads_q, head_dim]", "[5,6,16]"}},
       {"rank of k", [](auto& c, auto&) { c.k = c.k.select(0, 0); }, {"k must be", "[7,2,16]"}},
       {"v not given", [](auto& c, auto&) { c.v = {}; }, {"v must be given"}},
       {"q is an integer",
        [](auto& c, auto& m) { c.q = m.indices({0}, c.q.shape); },
        {"q must be float32, bfloat16 or float16", "int32"}},
       {"dtype of k",
        [](auto& c, auto& m) { c.k = m.normal(c.k.shape, DType::bfloat16, false); },
        {"k must be float32", "bfloat16"}},
       {"dtype of v",
        [](auto& c, auto& m) { c.v = m.normal(c.v.shape, DType::float16, false); },
        {"v must be float32", "float16"}},
       {"dtype of out",
        [](auto& c, auto& m) { c.out = m.normal(c.out.shape, DType::bfloat16, false); },
        {"out must be float32", "bfloat16"}},
       {"dtype of lse",
        [](auto& c, auto& m) { c.lse = m.normal(c.lse.shape, DType::float64, false); },
        {"lse must be float32", "float64"}},
       {"device of k",
        [](auto& c, auto&) {
          c.k.device = {DeviceType::cuda, 0};
        },
        {"k must be on cpu", "cuda:0"}},
       {"float32 on a GPU",
        [](auto& c, auto&) {
          c.q.device = {DeviceType::cuda, 0};
        },
        {"on a GPU q must be bfloat16 or float16", "float32", "Convert"}},
       {"batch of k",
        [](auto& c, auto&) { c.k = c.k.slice(0, 0, 1); },
        {"k must have q's batch", "[2,5,6,16]", "[1,7,2,16]"}},
       {"seqlen of v",
        [](auto& c, auto&) { c.v = c.v.slice(1, 0, 6); },
        {"v must have the sizes of k", "[2,7,2,16]", "[2,6,2,16]"}},
       {"head counts",
        [](auto& c, auto& m) {
          c.k = m.normal({2, 7, 4, 16}, DType::float32, false);
          c.v = c.k;
        },
        {"num_heads_q (6) must be a multiple of num_heads_kv (4)", "[2,5,6,16]", "[2,7,4,16]"}},
       {"no key heads",
        [](auto& c, auto&) {
          c.k = c.k.slice(2, 0, 0);
          c.v = c.v.slice(2, 0, 0);
        },
        {"num_heads must be at least 1", "[2,7,0,16]"}},
       {"head_dim of k",
        [](auto& c, auto&) { c.k = c.k.slice(3, 0, 8); },
        {"k must have q's head_dim (16)", "[2,7,2,8]"}},
       {"head_dim too large",
        [](auto& c, auto& m) {
          c.q = m.normal({2, 5, 6, 257}, DType::float32, false);
          c.k = m.normal({2, 7, 2, 257}, DType::float32, false);
        },
        {"head_dim (257) must be in [1, 256]"}},
       {"head_dim_v too large",
        [](auto& c, auto& m) {
          c.v = m.normal({2, 7, 2, 300}, DType::float32, false);
        },
        {"head_dim_v (300)", "256"}},
       {"last stride of q",
        [](auto& c, auto& m) {
          c.q = m.normal({2, 5, 16, 6}, DType::float32, false).transpose(2, 3);
        },
        {"the last dimension of q must have stride 1", "strides"}},
       {"no memory", [](auto& c, auto&) { c.k.data = nullptr; }, {"k has no memory"}},
       {"shape of out",
        [](auto& c, auto&) { c.out = c.out.slice(1, 0, 4); },
        {"out must be", "[2,5,6,16]", "[2,4,6,16]"}},
       {"shape of lse",
        [](auto& c, auto&) { c.lse = c.lse.slice(2, 0, 4); },
        {"lse must be [batch, num_heads_q, seqlen_q] = [2,6,5]", "[2,6,4]"}},
       {"sequence beyond 2^31",
        [](auto& c, auto&) {
          c.k = with_shape(c.k, {2, std::int64_t{1} << 31, 2, 16});
          c.v = with_shape(c.v, {2, std::int64_t{1} << 31, 2, 16});
        },
        {"2^31", "2147483648"}},
       {"sizes that overflow",
        [](auto& c, auto&) {
          c.q.shape = {kHuge, 5, 6, 16};
          c.k.shape = {kHuge, 7, 2, 16};
          c.v.shape = c.k.shape;
        },
        {"batch times seqlen must be below 2^63", "[4611686018427387904,5,6,16]"}},
       {"negative size", [](auto& c, auto&) { c.q.shape[1] = -5; }, {"-5"}},
       {"out is broadcast",
        [](auto& c, auto&) { c.out = c.out.slice(1, 0, 1).broadcast_to(c.out.shape); },
        {"out must not overlap itself", "[2,5,6,16] on cpu with strides [480,0,16,1]"}},
       {"rows of out overlap",
        [](auto& c, auto&) { c.out.strides[2] = 15; },
        {"out must not overlap itself", "[480,96,15,1]"}},
       {"lse is broadcast",
        [](auto& c, auto&) { c.lse = c.lse.slice(0, 0, 1).broadcast_to(c.lse.shape); },
        {"lse must not overlap itself", "[2,6,5] on cpu with strides [0,5,1]"}}});
}

// Any order of dimensions and any gaps are fine, and inputs may repeat themselves.
TEST(B3, results_may_have_any_strides_that_do_not_overlap) {
  Instance instance(dense_spec(), test_seed());
  AttentionCall call = instance.call;
  call.out = instance.outputs.poisoned({6, 2, 5, 16}, DType::float32, true).transpose(0, 2);
  call.out = call.out.transpose(0, 1);
  call.lse = instance.outputs.poisoned({6, 2, 5}, DType::float32, true).transpose(0, 1);
  call.k = call.k.slice(0, 0, 1).broadcast_to(call.k.shape);
  call.v = call.v.slice(2, 0, 1).broadcast_to(call.v.shape);
  EXPECT_NO_THROW(run(call));
  EXPECT_TRUE(instance.outputs.borders_intact());
}

TEST(C5, rules_of_options) {
  expect_refusals(
      dense_spec(), "flash_attn_func",
      {{"scale is NaN",
        [](auto& c, auto&) { c.options.softmax_scale = NAN; },
        {"softmax_scale must be finite", "nan"}},
       {"scale is infinite",
        [](auto& c, auto&) { c.options.softmax_scale = INFINITY; },
        {"softmax_scale must be finite", "inf"}},
       {"softcap is negative",
        [](auto& c, auto&) { c.options.softcap = -1.5f; },
        {"softcap must be 0 (off) or positive", "-1.5"}},
       {"softcap is NaN", [](auto& c, auto&) { c.options.softcap = NAN; }, {"softcap", "nan"}},
       {"window",
        [](auto& c, auto&) { c.options.window_left = -2; },
        {"window_left and window_right must be -1 (unbounded) or more", "-2"}},
       {"window", [](auto& c, auto&) { c.options.window_right = -7; }, {"window_right", "-7"}},
       {"dropout of 1",
        [](auto& c, auto&) { c.options.dropout.p = 1.0f; },
        {"dropout.p must be in [0, 1)", "got 1"}},
       {"negative dropout",
        [](auto& c, auto&) { c.options.dropout.p = -0.1f; },
        {"dropout.p", "-0.1"}},
       {"dropout is NaN", [](auto& c, auto&) { c.options.dropout.p = NAN; }, {"dropout.p", "nan"}},
       {"ALiBi shape",
        [](auto& c, auto& m) { c.options.alibi_slopes = m.normal({5}, DType::float32, false); },
        {"alibi_slopes must be [num_heads_q] or [batch, num_heads_q]", "6 heads", "[5]"}},
       {"ALiBi dtype",
        [](auto& c, auto& m) { c.options.alibi_slopes = m.normal({6}, DType::bfloat16, false); },
        {"alibi_slopes must be float32", "bfloat16"}},
       {"bias rank",
        [](auto& c, auto& m) {
          c.options.bias = m.normal({5, 7}, DType::float32, false);
        },
        {"bias must be", "[5,7]"}},
       {"bias shape",
        [](auto& c, auto& m) {
          c.options.bias = m.normal({2, 3, 5, 7}, DType::float32, false);
        },
        {"bias must be broadcastable to", "[2,6,5,7]", "[2,3,5,7]"}},
       {"bias dtype",
        [](auto& c, auto& m) {
          c.options.bias = m.normal({1, 1, 5, 7}, DType::float16, false);
        },
        {"bias must be float32", "float16"}},
       {"mask shape",
        [](auto& c, auto& m) {
          c.options.mask = m.booleans({1, 1, 7, 5}, false, 0.5);
        },
        {"mask must be broadcastable to", "[1,1,7,5]"}},
       {"mask dtype",
        [](auto& c, auto& m) {
          c.options.mask = m.normal({1, 1, 5, 7}, DType::float32, false);
        },
        {"mask must be boolean", "float32"}},
       {"sinks shape",
        [](auto& c, auto& m) { c.options.sinks = m.normal({2}, DType::float32, false); },
        {"sinks must be [num_heads_q] = [6]", "[2]"}},
       {"sinks dtype",
        [](auto& c, auto& m) { c.options.sinks = m.normal({6}, DType::bfloat16, false); },
        {"sinks must be float32", "bfloat16"}},
       {"sinks device",
        [](auto& c, auto& m) {
          c.options.sinks = m.normal({6}, DType::float32, false);
          c.options.sinks.device = {DeviceType::cuda, 1};
        },
        {"sinks must be on cpu", "cuda:1"}}});
}

// What spoils a backward call.
void expect_backward_refusal(const Case& spec, const std::function<void(AttentionCall&)>& spoil,
                             const std::vector<const char*>& words) {
  Instance instance(spec, test_seed());
  AttentionCall call = instance.backward_call(instance.call.out, instance.call.lse);
  call.name = "flash_attn_backward";
  ASSERT_NO_THROW(make_problem(call));
  spoil(call);
  const std::string message = message_of([&] { make_problem(call); });
  for (const char* word : words)
    EXPECT_NE(message.find(word), std::string::npos) << word << " / " << message;
}

TEST(C6, rules_of_gradients) {
  Case spec = dense_spec();
  spec.bias = {true, kHead};
  spec.sinks = spec.dlse = true;
  expect_backward_refusal(spec, [](auto& c) { c.dout = c.dout.slice(1, 0, 4); },
                          {"[flash_attn_backward] dout must be", "[2,4,6,16]"});
  expect_backward_refusal(spec, [](auto& c) { c.dq = {}; }, {"dq must be given"});
  expect_backward_refusal(spec, [](auto& c) { c.dk = c.dk.slice(2, 0, 1); },
                          {"dk must be", "[2,7,1,16]"});
  expect_backward_refusal(spec, [](auto& c) { c.dlse = c.dlse.slice(2, 0, 4); },
                          {"dlse must be", "[2,6,4]"});
  expect_backward_refusal(spec, [](auto& c) { c.dbias = c.dsinks; },
                          {"dbias must be", "[1,6,1,1]", "[6]"});
  expect_backward_refusal(spec, [](auto& c) { c.options.sinks = {}; },
                          {"dsinks is asked for, but there is no such input"});
  expect_backward_refusal(spec, [](auto& c) { c.dsinks = with_shape(c.dsinks, {3}); },
                          {"dsinks must be", "[6]", "[3]"});
  expect_backward_refusal(spec, [](auto& c) { c.lse = c.lse.select(0, 0); }, {"lse must be"});
  expect_backward_refusal(spec, [](auto& c) { c.cache.k = c.k, c.cache.v = c.v; },
                          {"attention to a cache has no backward", "dout", "cache.k float32"});
  expect_backward_refusal(spec, [](auto& c) { c.dbias.strides[1] = 0; },
                          {"dbias must be contiguous", "[6,0,1,1]"});
}

TEST(C6, gradients_must_not_overlap_themselves) {
  const Case spec = dense_spec();
  const auto overlaps = [&](TensorView AttentionCall::*gradient, const char* name) {
    for (const int dim : {0, 1, 2}) {
      expect_backward_refusal(
          spec,
          [&](auto& c) {
            c.*gradient = (c.*gradient).slice(dim, 0, 1).broadcast_to((c.*gradient).shape);
          },
          {"[flash_attn_backward]", name, "must not overlap itself", "with strides"});
    }
  };
  overlaps(&AttentionCall::dq, "dq");
  overlaps(&AttentionCall::dk, "dk");
  overlaps(&AttentionCall::dv, "dv");
  // What is read may.
  Instance instance(spec, test_seed());
  AttentionCall call = instance.backward_call(instance.call.out, instance.call.lse);
  call.dout = call.dout.slice(1, 0, 1).broadcast_to(call.dout.shape);
  call.out = call.out.slice(0, 0, 1).broadcast_to(call.out.shape);
  EXPECT_NO_THROW(make_problem(call));
}

TEST(C6, paged_keys_have_no_backward) {
  Case spec = dense_spec();
  spec.layout = Layout::ragged_paged;
  spec.page_size = 4;
  const Instance instance(spec, test_seed());
  AttentionCall call = instance.call;
  call.dout = call.out;
  call.dq = call.q, call.dk = call.k, call.dv = call.v;
  const std::string message = message_of([&] { make_problem(call); });
  EXPECT_NE(message.find("paged keys have no backward; got block_table int32 [2,2]"),
            std::string::npos)
      << message;
}

// The public functions check what they allocate from before they allocate.
TEST(B1, public_functions_name_themselves) {
  const Instance instance(dense_spec(), test_seed());
  const TensorView q = instance.call.q;
  const auto starts_with = [](const std::string& message, const char* start) {
    EXPECT_EQ(message.find(start), 0u) << message;
  };
  starts_with(message_of([&] { flash_attn_func(q, {}, {}); }), "[flash_attn_func] ");
  starts_with(message_of([&] { flash_attn_func({}, q, q); }), "[flash_attn_func] q must be given");
  starts_with(message_of([&] { flash_attn_kvpacked_func(q, q); }),
              "[flash_attn_kvpacked_func] kv must be [batch, seqlen, 2, num_heads, head_dim]");
  starts_with(message_of([&] { flash_attn_qkvpacked_func(q); }),
              "[flash_attn_qkvpacked_func] qkv must be");
  starts_with(message_of([&] { flash_attn_varlen_func(q, q, q, {}); }),
              "[flash_attn_varlen_func] q must be [total_q, num_heads_q, head_dim]");
  const TensorView rows = q.select(0, 0);
  starts_with(message_of([&] { flash_attn_varlen_func(rows, rows, rows, {}); }),
              "[flash_attn_varlen_func] cu_seqlens_q must be given");
  starts_with(message_of([&] { flash_attn_varlen_kvpacked_func(rows, rows, {}); }),
              "[flash_attn_varlen_kvpacked_func] kv must be");
  starts_with(message_of([&] { flash_attn_varlen_qkvpacked_func(rows, {}); }),
              "[flash_attn_varlen_qkvpacked_func] qkv must be");
  starts_with(message_of([&] { flash_attn_with_kvcache(q, {}); }), "[flash_attn_with_kvcache] ");
  const AttentionResult none;
  starts_with(message_of([&] { flash_attn_backward({}, q, q, q, none); }),
              "[flash_attn_backward] dout must be given");
  starts_with(message_of([&] { flash_attn_varlen_backward({}, rows, rows, rows, none, {}); }),
              "[flash_attn_varlen_backward] cu_seqlens_q must be given");
}

}  // namespace
}  // namespace flashmha::tests
