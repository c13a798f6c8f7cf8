// Rows A2 to A5 of the mission: between padded batches and ragged ones.
#include "tests/nn/support.h"

namespace flashmha::tests {
namespace {

using Mixin = FlashAttentionMixin;

TEST(A2, unpad_metadata) {
  const Tensor mask = mask_of({"0111", "1101", "0000", "1100"});
  const UnpadData data = get_unpad_data(mask);
  expect_near(data.indices, Values{1, 2, 3, 4, 5, 7, 12, 13}, 0, "indices");
  expect_near(data.cu_seqlens, Values{0, 3, 6, 6, 8}, 0, "cu_seqlens");
  EXPECT_EQ(data.max_seqlen, 3);
  EXPECT_FALSE(data.seqused.defined());
}

TEST(A2, integer_masks_and_the_mixins_name) {
  const Tensor wide = Tensor::from({std::int64_t{0}, std::int64_t{7}}, {1, 2});
  const Tensor narrow = int32_matrix({{0, 1}});
  for (const Tensor* mask : {&wide, &narrow}) {
    const UnpadData data = Mixin::get_unpad_data(*mask);
    expect_near(data.indices, Values{1}, 0, "indices");
  }
}

TEST(A2, unused_tokens_keep_their_place) {
  const UnpadData data = get_unpad_data(mask_of({"1100", "1000"}), mask_of({"0010", "0000"}));
  expect_near(data.indices, Values{0, 1, 2, 4}, 0, "indices");
  expect_near(data.cu_seqlens, Values{0, 3, 4}, 0, "cu_seqlens");
  expect_near(data.seqused, Values{2, 1}, 0, "seqused");
  expect_error([] { get_unpad_data(mask_of({"11"}), mask_of({"01"})); }, {"overlap at [0,1]"});
}

// Tensors are as large as the bound says; what is behind the last token is of nobody.
TEST(A2, a_bound_in_place_of_a_look) {
  Random random;
  const Tensor mask = mask_of({"0111", "1101", "0000", "1100"});
  const UnpadData exact = get_unpad_data(mask);
  for (const std::int64_t total : {8, 11, 16, 99}) {
    const UnpadData data = get_unpad_data(mask, {}, UnpadBound{.total = total, .max_seqlen = 4});
    EXPECT_EQ(data.total(), std::min<std::int64_t>(total, 16));
    EXPECT_EQ(data.max_seqlen, 4);
    expect_same_bits(data.cu_seqlens, exact.cu_seqlens, "cu_seqlens");
    expect_same_bits(data.indices.view().slice(0, 0, 8), exact.indices, "indices");
    const Tensor x = random.normal({4, 4, 3});
    const Tensor packed = unpad_input(x, data);
    expect_same_bits(packed.view().slice(0, 0, 8), unpad_input(x, exact), "unpadded");
    EXPECT_TRUE(all_zero(packed.view().slice(0, 8, packed.size(0))));
    expect_same_bits(pad_input(packed, data), pad_input(unpad_input(x, exact), exact), "padded");
  }
  expect_error([&] { get_unpad_data(mask, {}, UnpadBound{.total = 7, .max_seqlen = 4}); },
               {"[get_unpad_data] the bound (total 7, max_seqlen 4) must hold", "8 tokens, 3 of"});
  expect_error([&] { get_unpad_data(mask, {}, UnpadBound{.total = 16, .max_seqlen = 2}); },
               {"[get_unpad_data] the bound"});
  expect_error([&] { get_unpad_data(mask, {}, UnpadBound{.total = -1, .max_seqlen = 2}); },
               {"[get_unpad_data] a bound must not be negative", "-1"});
}

TEST(A4, a_bound_gives_what_looking_gives) {
  Random random;
  const Tensor q = random.normal({3, 5, 4, 8}), k = random.normal({3, 5, 2, 8});
  const Tensor v = random.normal({3, 5, 2, 6}), dout = random.normal({3, 5, 4, 6});
  for (const auto& rows : {std::vector<std::string>{"00111", "11011", "00000"},
                           std::vector<std::string>{"11111", "11111", "11111"}}) {
    const Tensor mask = mask_of(rows);
    Mixin::Options looking;
    looking.attention.causal = true;
    Mixin::Options bounded = looking;
    bounded.bound = UnpadBound{.total = 15, .max_seqlen = 5};
    const Mixin::Result expected = Mixin::forward(q, k, v, mask, looking);
    const Mixin::Result result = Mixin::forward(q, k, v, mask, bounded);
    expect_near(result.out(), expected.out(), 1e-6, "out");
    const Mixin::Gradients wanted = Mixin::backward(dout, q, k, v, expected, looking);
    const Mixin::Gradients gradients = Mixin::backward(dout, q, k, v, result, bounded);
    expect_near(gradients.dq, wanted.dq.view(), 1e-5, "dq");
    expect_near(gradients.dk, wanted.dk.view(), 1e-5, "dk");
    expect_near(gradients.dv, wanted.dv.view(), 1e-5, "dv");
  }
}

TEST(A2, concatenated_sequences) {
  const Tensor lengths = int32_matrix({{2, 3, 0, 0, 0, 0}, {6, 0, 0, 0, 0, 0}});
  const UnpadData data = get_unpad_data_for_concatenated_sequences(lengths);
  expect_near(data.cu_seqlens, Values{0, 2, 5, 11}, 0, "cu_seqlens");
  expect_near(data.indices, Values{0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11}, 0, "indices");
  EXPECT_EQ(data.max_seqlen, 6);
  expect_error(
      [] {
        get_unpad_data_for_concatenated_sequences(int32_matrix({{2, 2, 0}}));
      },
      {"must not be negative nor exceed seqlen (3)", "got 2 after 2"});
}

TEST(A2, bad_masks) {
  expect_error(
      [] {
        get_unpad_data(Tensor::zeros({2, 3}, DType::float32));
      },
      {"[get_unpad_data]", "boolean, int32 or int64", "float32 [2,3]"});
  expect_error(
      [] {
        get_unpad_data(Tensor::zeros({2, 3, 1}, DType::int32));
      },
      {"must be [batch,seqlen]", "[2,3,1]"});
  expect_error(
      [] {
        get_unpad_data(mask_of({"110", "100"}), mask_of({"0010", "0000"}));
      },
      {"[get_unpad_data] unused_mask must have the shape of mask", "[2,4]", "[2,3]"});
}

TEST(A3, same_length_query) {
  Random random;
  const Tensor q = random.normal({2, 4, 4, 8}), k = random.normal({2, 4, 2, 8});
  const Tensor v = random.normal({2, 4, 2, 6});
  const Mixin::Unpadded packed = Mixin::upad_input(q, k, v, mask_of({"0111", "1010"}));
  expect_near(packed.queries.cu_seqlens, Values{0, 3, 5}, 0, "cu_seqlens_q");
  expect_near(packed.keys.cu_seqlens, Values{0, 3, 5}, 0, "cu_seqlens_k");
  EXPECT_EQ(to_string(packed.q.shape()), "[5,4,8]");
  EXPECT_EQ(to_string(packed.v.shape()), "[5,2,6]");
  expect_same_bits(packed.k.view().select(0, 4), k.view().select(0, 1).select(0, 2), "last key");
}

TEST(A3, one_token_query) {
  Random random;
  const Tensor q = random.normal({3, 1, 2, 8}), k = random.normal({3, 4, 2, 8});
  const Mixin::Unpadded packed = Mixin::upad_input(q, k, k, mask_of({"0111", "1110", "0000"}));
  expect_near(packed.queries.cu_seqlens, Values{0, 1, 2, 3}, 0, "every row is one query");
  expect_near(packed.keys.cu_seqlens, Values{0, 3, 6, 6}, 0, "cu_seqlens_k");
  EXPECT_EQ(packed.queries.max_seqlen, 1);
}

TEST(A3, last_columns_query) {
  Random random;
  const Tensor q = random.normal({2, 3, 2, 8}), k = random.normal({2, 5, 2, 8});
  const Mixin::Unpadded packed = Mixin::upad_input(q, k, k, mask_of({"00011", "11111"}));
  expect_near(packed.queries.indices, Values{1, 2, 3, 4, 5}, 0, "real queries");
  expect_near(packed.queries.cu_seqlens, Values{0, 2, 5}, 0, "cu_seqlens_q");
  expect_near(packed.keys.cu_seqlens, Values{0, 2, 7}, 0, "cu_seqlens_k");
}

TEST(A3, cross_attention_queries_are_all_real) {
  Random random;
  const Tensor q = random.normal({2, 4, 2, 8}), k = random.normal({2, 4, 2, 8});
  const Mixin::Unpadded packed =
      Mixin::upad_input(q, k, k, mask_of({"1100", "1110"}), Mixin::Queries::all);
  expect_near(packed.queries.cu_seqlens, Values{0, 4, 8}, 0, "cu_seqlens_q");
}

TEST(A3, more_queries_than_keys_are_refused) {
  const Tensor q = Tensor::zeros({1, 4, 2, 8}, DType::float32);
  const Tensor k = Tensor::zeros({1, 3, 2, 8}, DType::float32);
  expect_error([&] { Mixin::upad_input(q, k, k, mask_of({"011"})); },
               {"[FlashAttentionMixin]", "more queries", "(3)", "[1,4,2,8]"});
}

TEST(A4, all_ones_takes_the_dense_path) {
  Random random;
  const Tensor q = random.normal({2, 5, 2, 8});
  EXPECT_FALSE(Mixin::forward(q, q, q, mask_of({"11111", "11111"})).unpadded.has_value());
  EXPECT_TRUE(Mixin::forward(q, q, q, mask_of({"11111", "01111"})).unpadded.has_value());
}

TEST(A4, mask_and_packed_sequences_exclude_each_other) {
  const Tensor q = Tensor::zeros({1, 4, 2, 8}, DType::float32);
  const PackedSequences packed = packed_sequences(int32_matrix({{0, 1, 0, 1}}));
  Mixin::Options options;
  options.packed = &packed;
  expect_error([&] { Mixin::forward(q, q, q, mask_of({"1111"}), options); },
               {"exclude each other", "boolean [1,4]"});
}

TEST(A5, pad_and_unpad_are_a_pair) {
  Random random;
  const Tensor x = random.normal({3, 4, 2, 5}, DType::bfloat16);
  const UnpadData data = get_unpad_data(mask_of({"0110", "1111", "0000"}));
  const Tensor packed = unpad_input(x, data);
  EXPECT_EQ(to_string(packed.shape()), "[6,2,5]");
  const Tensor padded = pad_input(packed, data);
  EXPECT_TRUE(all_zero(padded.view().select(0, 0).slice(0, 0, 1)));
  EXPECT_TRUE(all_zero(padded.view().select(0, 0).slice(0, 3, 4)));
  EXPECT_TRUE(all_zero(padded.view().select(0, 2)));
  expect_same_bits(padded.view().select(0, 1), x.view().select(0, 1), "real rows");
  expect_same_bits(unpad_input(padded, data), packed, "unpad(pad(x)) = x");
}

TEST(A5, gradients_are_the_transposes) {
  // <unpad(x), y> = <x, unpad_backward(y)>, and the same for pad.
  Random random;
  const Tensor x = random.normal({2, 6, 3}), y = random.normal({7, 3});
  const UnpadData data = get_unpad_data(mask_of({"011101", "110001"}));
  EXPECT_NEAR(weighted_sum(y, values_of(unpad_input(x, data))),
              weighted_sum(unpad_input_backward(y, data), values_of(x)), 1e-6);
  EXPECT_NEAR(weighted_sum(x, values_of(pad_input(y, data))),
              weighted_sum(pad_input_backward(x, data), values_of(y)), 1e-6);
}

TEST(A5, wrong_sizes_are_named) {
  const UnpadData data = get_unpad_data(mask_of({"0111"}));
  expect_error(
      [&] {
        pad_input(Tensor::zeros({2, 3}, DType::float32), data);
      },
      {"[pad_input]", "[3,...]", "[2,3]"});
  expect_error(
      [&] {
        unpad_input(Tensor::zeros({1, 5, 3}, DType::float32), data);
      },
      {"[unpad_input]", "[1,4]", "[1,5,3]"});
}

TEST(B9, positions_become_sequences) {
  const PackedSequences packed =
      packed_sequences(int32_matrix({{0, 1, 2, 0, 1, 0}, {5, 6, 5, 6, 7, 8}}));
  expect_near(packed.cu_seqlens, Values{0, 3, 5, 6, 8, 12}, 0, "cu_seqlens");
  EXPECT_EQ(packed.max_seqlen, 4);
}

TEST(B9, invalid_positions_are_refused) {
  const auto refused = [](const Tensor& ids, const std::vector<std::string>& fragments) {
    expect_error([&] { packed_sequences(ids); }, fragments);
  };
  refused(Tensor::zeros({3, 1, 8}, DType::int32), {"several axes", "[3,1,8]"});
  refused(int32_matrix({{-1, 0, 1}}), {"must not be negative", "-1"});
  refused(int32_matrix({{0, 1, 3}}),
          {"count up by 1 or start again at 0", "got 3 after 1", "[0,2]"});
  refused(int32_matrix({{2, 3, 0, 1}}), {"begin with its smallest value (0)", "got 2"});
  refused(int32_matrix({{0, 1, 1}}), {"got 1 after 1"});
}

TEST(Padding, LogicalPositions) {
  expect_near(positions_from_mask(mask_of({"00111", "10110"}), 3), Values{0, 1, 2, 1, 2, 0}, 0,
              "last three columns");
}

TEST(Padding, WindowLengthCountsTheTokenItself) {
  EXPECT_EQ(window_of_length(4, true).left, 3);
  EXPECT_EQ(window_of_length(4, true).right, 0);
  EXPECT_EQ(window_of_length(4, false).right, 3);
  EXPECT_EQ(window_of_length(0, true).left, -1);
  EXPECT_EQ(window_of_length(0, false).right, -1);
}

}  // namespace
}  // namespace flashmha::tests
