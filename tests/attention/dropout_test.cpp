// Dropout is a function of (seed, offset, batch, head, row, column): seen element by element.
#include <gtest/gtest.h>

#include <cmath>

#include "attention/philox.h"
#include "tests/attention/api.h"

namespace flashmha::tests {
namespace {

// Scores of 0 make every probability 1 / seqlen_k; values that are unit vectors then show one
// probability per element of out: out[i, d] = z(i, first + d) / (seqlen_k (1 - p)).
struct Revealed {
  Tensor q, k, v;
};

Revealed reveal(const Shape& q, const Shape& k, std::int64_t first, DType dtype) {
  constexpr std::int64_t kWidth = 256;
  const int rows = k.rank - 3;
  Shape v = k;
  v[v.rank - 1] = kWidth;
  Revealed inputs{Tensor::zeros(q, dtype), Tensor::zeros(k, dtype), Tensor::zeros(v, dtype)};
  for (std::int64_t d = 0; d < kWidth; ++d) {
    if (first + d >= k[rows]) break;
    fill(inputs.v.view().select(v.rank - 1, d).select(rows, first + d), 1.0);
  }
  return inputs;
}

struct Dims {
  std::int64_t batch, seqlen_q, seqlen_k, num_heads_q, num_heads_kv;
};

// Reads the mask of a dense call from its results and compares it with philox.h. Returns how many
// elements were kept.
std::int64_t expect_mask(const Dims& dims, const AttentionOptions& options, DType dtype) {
  constexpr std::int64_t kWidth = 256;
  const double scale = 1.0 / (1.0 - static_cast<double>(options.dropout.p));
  std::int64_t num_kept = 0;
  std::int64_t num_wrong = 0;
  for (std::int64_t first = 0; first < dims.seqlen_k; first += kWidth) {
    const Revealed inputs = reveal({dims.batch, dims.seqlen_q, dims.num_heads_q, 8},
                                   {dims.batch, dims.seqlen_k, dims.num_heads_kv, 8}, first, dtype);
    const AttentionResult result = flash_attn_func(inputs.q, inputs.k, inputs.v, options);
    const Tensor out = cast(result.out, DType::float32);
    for (std::int64_t n = 0; n < out.numel(); ++n) {
      const std::int64_t column = first + n % kWidth;
      if (column >= dims.seqlen_k) continue;
      const std::int64_t head = n / kWidth % dims.num_heads_q;
      const std::int64_t row = n / kWidth / dims.num_heads_q % dims.seqlen_q;
      const std::int64_t batch = n / kWidth / dims.num_heads_q / dims.seqlen_q;
      const DropoutRows mask(options.dropout, batch * dims.num_heads_q + head);
      const bool keep = mask.keep(row, column);
      const double expected = keep ? scale / static_cast<double>(dims.seqlen_k) : 0.0;
      num_kept += keep ? 1 : 0;
      num_wrong += std::abs(static_cast<double>(out.as<float>()[n]) - expected) > 0.01 * expected;
    }
  }
  EXPECT_EQ(num_wrong, 0) << "elements whose dropout differs from philox.h";
  return num_kept;
}

TEST(C4, every_element_is_what_philox_says) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    const AttentionOptions options{
        .dropout = {.p = 0.3f, .seed = test_seed(), .offset = test_seed() << 20}};
    expect_mask({2, 70, 300, 4, 2}, options, dtype);
    expect_mask({1, 1, 9, 3, 3}, options, dtype);
  }
}

TEST(C4, the_realised_fraction_is_p) {
  const Dims dims{2, 100, 256, 4, 4};
  const auto count =
      static_cast<double>(dims.batch * dims.seqlen_q * dims.seqlen_k * dims.num_heads_q);
  for (const float p : {0.0001f, 0.1f, 0.5f, 0.9f}) {
    const AttentionOptions options{.dropout = {.p = p, .seed = test_seed()}};
    const auto kept = static_cast<double>(expect_mask(dims, options, DType::float32));
    const auto expected = static_cast<double>(1.0f - p);
    const double deviation = std::sqrt(expected * (1 - expected) / count);
    // Five standard deviations: wrong alarm in 2 of 10^6 runs. 2^-17: drawn with 16 bits.
    EXPECT_NEAR(kept / count, expected, 5 * deviation + 0x1p-17);
  }
}

TEST(C4, seed_and_offset_both_matter) {
  const auto kept = [](std::uint64_t seed, std::uint64_t offset) {
    const DropoutRows mask({.p = 0.5f, .seed = seed, .offset = offset}, 3);
    std::uint64_t bits = 0;
    for (std::int64_t column = 0; column < 64; ++column) {
      bits |= static_cast<std::uint64_t>(mask.keep(5, column)) << column;
    }
    return bits;
  };
  const std::uint64_t high = std::uint64_t{1} << 40;
  EXPECT_EQ(kept(1, 2), kept(1, 2));
  EXPECT_NE(kept(1, 2), kept(2, 2));
  EXPECT_NE(kept(1, 2), kept(1, 3));
  EXPECT_NE(kept(1, 2), kept(1 + high, 2));
  EXPECT_NE(kept(1, 2), kept(1, 2 + high));
}

// Rows and columns count inside a sequence, so packing sequences together changes nothing.
TEST(C4, a_ragged_batch_drops_what_a_dense_one_drops) {
  const AttentionOptions options{.dropout = {.p = 0.4f, .seed = test_seed()}};
  const Case spec{.layout = Layout::dense,
                  .batch = 3,
                  .seqlen_q = 33,
                  .seqlen_k = 47,
                  .num_heads_q = 2,
                  .num_heads_kv = 2,
                  .head_dim = 16};
  const Instance instance(spec, test_seed());
  const AttentionCall& call = instance.call;
  const AttentionResult dense = flash_attn_func(call.q, call.k, call.v, options);
  const auto flat = [](const TensorView& tensor) {
    return tensor.reshape({tensor.size(0) * tensor.size(1), tensor.size(2), tensor.size(3)});
  };
  const Tensor cu_q = Tensor::from<std::int32_t>({0, 33, 66, 99}, {4});
  const Tensor cu_k = Tensor::from<std::int32_t>({0, 47, 94, 141}, {4});
  const AttentionResult ragged = flash_attn_varlen_func(
      flat(call.q), flat(call.k), flat(call.v),
      {.cu_seqlens_q = cu_q, .cu_seqlens_k = cu_k, .max_seqlen_q = 33, .max_seqlen_k = 47},
      options);
  for (std::int64_t n = 0; n < dense.out.numel(); ++n) {
    ASSERT_EQ(dense.out.as<float>()[n], ragged.out.as<float>()[n]);
  }
}

}  // namespace
}  // namespace flashmha::tests
