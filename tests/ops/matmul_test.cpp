#include <cmath>

#include "flashmha/ops.h"
#include "tests/nn/support.h"

namespace flashmha::tests {
namespace {

// [.., m, n] = alpha a b + beta c + bias over the batch of c, element by element.
Values matmul_in_double(const TensorView& a, const TensorView& b, const TensorView& c, double alpha,
                        double beta, const TensorView& bias) {
  Shape shape_a = c.shape;
  Shape shape_b = c.shape;
  for (int d = 1; d <= 2; ++d) {
    shape_a[c.rank() - d] = a.size(-d);
    shape_b[c.rank() - d] = b.size(-d);
  }
  const Values va = values_of(a.broadcast_to(shape_a));
  const Values vb = values_of(b.broadcast_to(shape_b));
  const Values vc = values_of(c);
  const Values add = values_of(bias);
  const auto m = static_cast<std::size_t>(c.size(-2));
  const auto n = static_cast<std::size_t>(c.size(-1));
  const auto k = static_cast<std::size_t>(a.size(-1));
  Values out(vc.size());
  for (std::size_t p = 0; p < out.size() / (m * n); ++p) {
    for (std::size_t i = 0; i < m; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        double sum = 0.0;
        for (std::size_t l = 0; l < k; ++l)
          sum += va[(p * m + i) * k + l] * vb[(p * k + l) * n + j];
        const std::size_t at = (p * m + i) * n + j;
        out[at] = alpha * sum + (beta != 0.0 ? beta * vc[at] : 0.0) + (add.empty() ? 0.0 : add[j]);
      }
    }
  }
  return out;
}

double tolerance_of(DType dtype) {
  return dtype == DType::float32 ? 2e-5 : dtype == DType::bfloat16 ? 1.0 / 128 : 1.0 / 1024;
}

TEST(Matmul, EveryTransposeAndDtype) {
  Random random;
  const DType dtypes[] = {DType::float32, DType::bfloat16, DType::float16};
  for (const DType left : dtypes) {
    for (const DType right : dtypes) {
      for (int transposes = 0; transposes < 4; ++transposes) {
        const std::int64_t m = 1 + random.below(40), n = 1 + random.below(70),
                           k = 1 + random.below(50);
        const Tensor a = transposes & 1 ? random.normal({k, m}, left) : random.normal({m, k}, left);
        const Tensor b =
            transposes & 2 ? random.normal({n, k}, right) : random.normal({k, n}, right);
        const TensorView va = transposes & 1 ? a.view().transpose(0, 1) : a.view();
        const TensorView vb = transposes & 2 ? b.view().transpose(0, 1) : b.view();
        for (const DType out : dtypes) {
          const Tensor c = poisoned({m, n}, out);
          ops::matmul(va, vb, c);
          expect_near(c, matmul_in_double(va, vb, c, 1.0, 0.0, {}), tolerance_of(out), "c");
        }
      }
    }
  }
}

TEST(Matmul, AlphaBetaBiasAccumulate) {
  Random random;
  const Tensor a = random.normal({9, 33});
  const Tensor b = random.normal({33, 21});
  const Tensor bias = random.normal({21}, DType::bfloat16);
  const Tensor c = random.normal({9, 21});
  const Values expected = matmul_in_double(a, b, c, 0.5, -2.0, bias);
  ops::matmul(a, b, c, {.alpha = 0.5f, .beta = -2.0f, .bias = bias});
  expect_near(c, expected, 2e-5, "c");
}

TEST(Matmul, BatchesBroadcastAndStrides) {
  Random random;
  // Heads inside [batch, seqlen, heads, dim], keys shared by a group through a stride of 0.
  const Tensor q = random.normal({2, 7, 6, 16});
  const Tensor k = random.normal({2, 11, 1, 16});
  const TensorView heads = q.view().transpose(1, 2);                 // [2, 6, 7, 16]
  const TensorView keys = k.view().transpose(1, 2).transpose(2, 3);  // [2, 1, 16, 11]
  const Tensor scores = poisoned({2, 6, 7, 11});
  ops::matmul(heads, keys, scores);
  expect_near(scores, matmul_in_double(heads, keys, scores, 1, 0, {}), 2e-5, "scores");

  const Tensor out = poisoned({2, 7, 6, 16});
  const TensorView by_head = out.view().transpose(1, 2);
  const TensorView values = k.view().transpose(1, 2);
  ops::matmul(scores, values, by_head);
  expect_near(by_head, matmul_in_double(scores, values, by_head, 1, 0, {}), 2e-4, "out");
}

TEST(Matmul, EmptyDepthGivesTheBias) {
  const Tensor a = Tensor::empty({3, 0}, DType::float32);
  const Tensor b = Tensor::empty({0, 2}, DType::float32);
  const Tensor bias = Tensor::from({1.0f, 2.0f}, {2});
  const Tensor c = poisoned({3, 2});
  ops::matmul(a, b, c, {.bias = bias});
  expect_near(c, Values{1, 2, 1, 2, 1, 2}, 0.0, "c");
}

TEST(Matmul, BitsDoNotDependOnThreads) {
  Random random;
  const Tensor a = random.normal({130, 300});
  const Tensor b = random.normal({300, 257});
  const Tensor one = poisoned({130, 257});
  const Tensor many = poisoned({130, 257});
  with_threads(1, [&] { ops::matmul(a, b, one); });
  with_threads(4, [&] { ops::matmul(a, b, many); });
  expect_same_bits(one, many, "c");
}

TEST(Matmul, SaysWhatDoesNotFit) {
  const Tensor a = Tensor::zeros({2, 3}, DType::float32);
  const Tensor b = Tensor::zeros({4, 5}, DType::float32);
  const Tensor c = Tensor::zeros({2, 5}, DType::float32);
  expect_error([&] { ops::matmul(a, b, c); }, {"[matmul]", "[2,3]", "[4,5]", "[2,5]"});
  const Tensor integers = Tensor::zeros({2, 3}, DType::int32);
  const TensorView row = a.view().select(0, 0);
  expect_error([&] { ops::matmul(row, b, c); }, {"[matmul] a, b and c must have rank 2 or more",
                                                 "float32 [3] on cpu, float32 [4,5]"});
  TensorView elsewhere = b.view().slice(0, 0, 3);
  elsewhere.device = {DeviceType::cuda, 1};
  expect_error([&] { ops::matmul(a, elsewhere, c); },
               {"[matmul] a and b must be on one device", "[2,3] on cpu", "[3,5] on cuda:1"});
  expect_error([&] { ops::matmul(integers, b, c); }, {"[matmul]", "a must be float32", "int32"});
}

TEST(BiasGradient, AddsColumnSums) {
  Random random;
  const Tensor dout = random.normal({3, 100, 37}, DType::bfloat16);
  const Tensor gradient = random.normal({37});
  Values expected = values_of(gradient);
  const Values d = values_of(dout);
  for (std::size_t i = 0; i < d.size(); ++i)
    expected[i % 37] += d[i];
  ops::bias_gradient(dout, gradient);
  expect_near(gradient, expected, 1e-4, "gradient");
}

}  // namespace
}  // namespace flashmha::tests
