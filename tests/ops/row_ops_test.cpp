#include <cmath>
#include <limits>

#include "flashmha/ops.h"
#include "tests/nn/support.h"

namespace flashmha::tests {
namespace {

TEST(GatherScatter, RowsOfEveryDtype) {
  Random random;
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::int32}) {
    const Tensor x = dtype == DType::int32 ? random.integers({6, 2, 5}, 100, dtype)
                                           : random.normal({6, 2, 5}, dtype);
    const Tensor indices = Tensor::from({std::int64_t{4}, std::int64_t{0}, std::int64_t{5}}, {3});
    const Tensor y = Tensor::empty({3, 2, 5}, dtype);
    ops::gather_rows(x, indices, y);
    expect_same_bits(y.view().select(0, 0), x.view().select(0, 4), "row 4");
    expect_same_bits(y.view().select(0, 1), x.view().select(0, 0), "row 0");
    expect_same_bits(y.view().select(0, 2), x.view().select(0, 5), "row 5");

    const Tensor back =
        dtype == DType::int32 ? random.integers({6, 2, 5}, 9, dtype) : poisoned({6, 2, 5}, dtype);
    ops::scatter_rows(y, indices, back);
    for (const std::int64_t row : {0, 4, 5}) {
      expect_same_bits(back.view().select(0, row), x.view().select(0, row), "kept row");
    }
    for (const std::int64_t row : {1, 2, 3})
      EXPECT_TRUE(all_zero(back.view().select(0, row)));
  }
}

TEST(GatherScatter, SaysWhichIndexIsOutside) {
  const Tensor x = Tensor::zeros({3, 2}, DType::float32);
  const Tensor indices = Tensor::from({std::int64_t{1}, std::int64_t{3}}, {2});
  const Tensor y = Tensor::zeros({2, 2}, DType::float32);
  expect_error([&] { ops::gather_rows(x, indices, y); }, {"[gather_rows]", "[0, 3)", "got 3 at 1"});
}

TEST(Embedding, ForwardAndAccumulatedGradient) {
  Random random;
  const Tensor table = random.normal({10, 300}, DType::bfloat16);
  const Tensor ids = random.integers({2, 40}, 10, DType::int64);
  const Tensor out = poisoned({2, 40, 300});
  ops::embedding(table, ids, out);
  const Tensor dout = random.normal({2, 40, 300});
  const Tensor one = random.normal({10, 300});
  const Tensor many = clone(one);
  Values expected = values_of(one);
  const Values d = values_of(dout), rows = values_of(table);
  Values looked_up;
  for (std::size_t i = 0; i < 80; ++i) {
    const auto id = static_cast<std::size_t>(ids.as<std::int64_t>()[i]);
    for (std::size_t j = 0; j < 300; ++j) {
      looked_up.push_back(rows[id * 300 + j]);
      expected[id * 300 + j] += d[i * 300 + j];
    }
  }
  expect_near(out, looked_up, 0.0, "out");
  with_threads(1, [&] { ops::embedding_backward(dout, ids, one); });
  with_threads(4, [&] { ops::embedding_backward(dout, ids, many); });
  expect_near(one, expected, 1e-5, "dtable");
  expect_same_bits(one, many, "threads");

  constexpr float kScale = 2.75f;  // exact with bfloat16's 8 bits in float32
  ops::embedding(table, ids, out, kScale);
  const Tensor dtable = Tensor::zeros({10, 300}, DType::float32);
  ops::embedding_backward(dout, ids, dtable, kScale);
  Values scaled(3000);
  for (std::size_t i = 0; i < 80 * 300; ++i) {
    looked_up[i] *= double(kScale);
    scaled[static_cast<std::size_t>(ids.as<std::int64_t>()[i / 300]) * 300 + i % 300] +=
        double(kScale) * d[i];
  }
  expect_near(out, looked_up, 0.0, "scaled out");
  expect_near(dtable, scaled, 1e-5, "dtable of a scaled embedding");
  const Tensor outside = Tensor::from({std::int32_t{10}}, {1});
  expect_error(
      [&] {
        ops::embedding(table, outside, poisoned({1, 300}));
      },
      {"[embedding]", "[0, 10)", "got 10"});
}

TEST(Argmax, FirstOfEqualsAndNan) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const Tensor x = Tensor::from({1.0f, 3.0f, 3.0f, -5.0f, -2.0f, -2.0f, 9.0f, kNan, 1.0f}, {3, 3});
  const Tensor out = Tensor::empty({3}, DType::int32);
  ops::argmax(x, out);
  expect_near(out, Values{1, 1, 1}, 0.0, "argmax");
  Random random;
  const Tensor logits = random.normal({5, 4001}, DType::bfloat16);
  const Tensor best = Tensor::empty({5}, DType::int32);
  ops::argmax(logits, best);
  const Values v = values_of(logits);
  for (std::size_t row = 0; row < 5; ++row) {
    const auto begin = v.begin() + static_cast<std::ptrdiff_t>(row * 4001);
    EXPECT_EQ(best.as<std::int32_t>()[row], std::max_element(begin, begin + 4001) - begin);
  }
}

}  // namespace
}  // namespace flashmha::tests
