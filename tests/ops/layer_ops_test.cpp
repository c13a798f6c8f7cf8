#include <cmath>
#include <numbers>
#include <numeric>

#include "flashmha/ops.h"
#include "tests/nn/support.h"

namespace flashmha::tests {
namespace {

Values rms_norm_in_double(const Values& x, const Values& weight, double eps, double offset = 0.0) {
  const std::size_t n = weight.size();
  Values y(x.size());
  for (std::size_t row = 0; row < x.size(); row += n) {
    double squares = 0.0;
    for (std::size_t j = 0; j < n; ++j)
      squares += x[row + j] * x[row + j];
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
    for (std::size_t j = 0; j < n; ++j)
      y[row + j] = x[row + j] * scale * (weight[j] + offset);
  }
  return y;
}

TEST(RMSNormOp, ForwardInEveryDtype) {
  Random random;
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    const Tensor x = random.normal({3, 5, 37}, dtype);
    const Tensor weight = random.normal({37}, dtype);
    const Tensor y = poisoned(x.shape(), dtype);
    ops::rms_norm(x, weight, {.eps = 1e-3f}, y);
    const double tolerance = dtype == DType::float32 ? 1e-5 : 1.0 / 128;
    const Values vx = values_of(x), vw = values_of(weight);
    expect_near(y, rms_norm_in_double(vx, vw, 1e-3), tolerance, "y");
    ops::rms_norm(x, weight, {.eps = 1e-3f, .weight_offset = 1.0f}, y);
    expect_near(y, rms_norm_in_double(vx, vw, 1e-3, 1.0), tolerance, "y with an offset");
  }
}

TEST(RMSNormOp, GradientsByFiniteDifferences) {
  Random random;
  const Tensor x = random.normal({70, 11});
  const Tensor weight = random.normal({11});
  const Tensor dy = random.normal({70, 11});
  const Tensor y = poisoned({70, 11}), rstd = poisoned({70}), dx = poisoned({70, 11});
  const Tensor dweight = Tensor::zeros({11}, DType::float32);
  const Values vx = values_of(x), vw = values_of(weight);
  for (const float offset : {0.0f, 1.0f}) {
    fill(dweight, 3.0);  // gradients are added to
    const ops::RMSNormOptions options{.eps = 1e-2f, .weight_offset = offset};
    ops::rms_norm(x, weight, options, y, rstd);
    ops::rms_norm_backward(dy, x, weight, options, rstd, dx, dweight);
    const auto loss = [&](const Values& at_x, const Values& at_weight) {
      return weighted_sum(dy, rms_norm_in_double(at_x, at_weight, 1e-2, double(offset)));
    };
    const auto by_x = [&](const Values& v) { return loss(v, vw); };
    const auto by_weight = [&](const Values& v) {
      return loss(vx, v) + 3.0 * std::accumulate(v.begin(), v.end(), 0.0);
    };
    expect_near(dx, numeric_gradient(by_x, vx), 1e-4, "dx");
    expect_near(dweight, numeric_gradient(by_weight, vw), 1e-4, "dweight");
  }
}

TEST(RMSNormOp, StridedRowsInPlaceAndThreads) {
  Random random;
  const Tensor packed = random.normal({4, 90, 3, 64});  // one of three parts is normalised in place
  const Tensor weight = random.normal({64});
  const Values expected =
      rms_norm_in_double(values_of(packed.view().select(2, 1)), values_of(weight), 1e-6);
  const Tensor before = clone(packed);
  ops::rms_norm(packed.view().select(2, 1), weight, {}, packed.view().select(2, 1));
  expect_near(packed.view().select(2, 1), expected, 1e-5, "part");
  expect_same_bits(packed.view().select(2, 0), before.view().select(2, 0), "neighbour");

  const Tensor rstd = poisoned({4, 90});
  ops::rms_norm(before.view().select(2, 1), weight, {}, packed.view().select(2, 1), rstd);
  const Tensor dx1 = poisoned({4, 90, 64}), dx4 = poisoned({4, 90, 64});
  const Tensor dw1 = Tensor::zeros({64}, DType::float32);
  const Tensor dw4 = Tensor::zeros({64}, DType::float32);
  const TensorView x = before.view().select(2, 1), dy = before.view().select(2, 0);
  with_threads(1, [&] { ops::rms_norm_backward(dy, x, weight, {}, rstd, dx1, dw1); });
  with_threads(4, [&] { ops::rms_norm_backward(dy, x, weight, {}, rstd, dx4, dw4); });
  expect_same_bits(dx1, dx4, "dx");
  expect_same_bits(dw1, dw4, "dweight");
}

TEST(RMSNormOp, SaysWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({2, 8}, DType::float32);
  const Tensor weight = Tensor::zeros({7}, DType::float32);
  expect_error([&] { ops::rms_norm(x, weight, {}, x); },
               {"[rms_norm]", "weight must have shape [8]", "[7]"});
}

double activate(ops::Activation activation, double x) {
  if (activation == ops::Activation::silu) return x / (1.0 + std::exp(-x));
  const double u = std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x);
  return 0.5 * x * (1.0 + std::tanh(u));
}

TEST(Glu, ForwardAndGradients) {
  Random random;
  for (const ops::Activation activation : {ops::Activation::silu, ops::Activation::gelu_tanh}) {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      const double tolerance = dtype == DType::float32 ? 1e-5 : 1.0 / 64;
      const Tensor gate = random.normal({3, 701}, dtype, 3.0);
      const Tensor up = random.normal({3, 701}, dtype);
      const Tensor dout = random.normal({3, 701}, dtype);
      const Tensor out = poisoned({3, 701}, dtype);
      const Tensor dgate = poisoned({3, 701}, dtype), dup = poisoned({3, 701}, dtype);
      ops::glu(activation, gate, up, out);
      ops::glu_backward(activation, dout, gate, up, dgate, dup);
      const Values g = values_of(gate), u = values_of(up), d = values_of(dout);
      Values expected(g.size()), expected_gate(g.size()), expected_up(g.size());
      for (std::size_t i = 0; i < g.size(); ++i) {
        const double below = activate(activation, g[i] - 1e-6);
        const double above = activate(activation, g[i] + 1e-6);
        expected[i] = activate(activation, g[i]) * u[i];
        expected_up[i] = d[i] * activate(activation, g[i]);
        expected_gate[i] = d[i] * u[i] * (above - below) / 2e-6;
      }
      expect_near(out, expected, tolerance, "out");
      expect_near(dgate, expected_gate, tolerance, "dgate");
      expect_near(dup, expected_up, tolerance, "dup");
    }
  }
}

TEST(Glu, ExtremeGates) {
  const Tensor gate = Tensor::from({-1e30f, -200.0f, -90.0f, 0.0f, 90.0f, 1e30f, NAN}, {7});
  const Tensor ones = Tensor::from({1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f}, {7});
  for (const ops::Activation activation : {ops::Activation::silu, ops::Activation::gelu_tanh}) {
    const Tensor out = poisoned({7}), dgate = poisoned({7}), dup = poisoned({7});
    ops::glu(activation, gate, ones, out);
    ops::glu_backward(activation, ones, gate, ones, dgate, dup);
    expect_near(out, Values{0, 0, 0, 0, 90, 1e30, NAN}, 1e-6, "out");
    expect_near(dgate, Values{0, 0, 0, 0.5, 1, 1, NAN}, 1e-6, "dgate");
    expect_near(dup, values_of(out), 1e-6, "dup");
  }
}

TEST(Softcap, ForwardAndGradientInPlace) {
  Random random;
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const double tolerance = dtype == DType::float32 ? 1e-5 : 1.0 / 64;
    const Tensor x = random.normal({3, 701}, dtype, 20.0);
    const Tensor dy = random.normal({3, 701}, dtype);
    const Values vx = values_of(x), d = values_of(dy);
    Values expected(vx.size()), gradient(vx.size());
    for (std::size_t i = 0; i < vx.size(); ++i) {
      const double t = std::tanh(vx[i] / 7.0);
      expected[i] = 7.0 * t;
      gradient[i] = d[i] * (1.0 - t * t);
    }
    const Tensor y = poisoned({3, 701}, dtype), dx = clone(x);
    ops::softcap(x, 7.0f, y);
    expect_near(y, expected, tolerance, "y");
    ops::softcap_backward(dy, x, 7.0f, dy);
    expect_near(dy, gradient, tolerance, "dx");
    copy(random.normal({3, 701}, dtype), dy);  // dx may be x too
    const Tensor apart = poisoned({3, 701}, dtype);
    ops::softcap_backward(dy, x, 7.0f, apart);
    ops::softcap_backward(dy, dx, 7.0f, dx);
    expect_same_bits(dx, apart, "dx in place of x");
    ops::softcap(x, 7.0f, x);
    expect_same_bits(x, y, "y in place of x");
  }
  const Tensor x = Tensor::zeros({2}, DType::float32);
  expect_error([&] { ops::softcap(x, 0.0f, x); }, {"[softcap]", "cap (0) must be positive"});
}

TEST(Add, MixedDtypesAndAliases) {
  Random random;
  const Tensor a = random.normal({5, 33}, DType::bfloat16);
  const Tensor b = random.normal({5, 33});
  const Values va = values_of(a), vb = values_of(b);
  Values expected(va.size());
  for (std::size_t i = 0; i < va.size(); ++i)
    expected[i] = va[i] + vb[i];
  ops::add(a, b, b);
  expect_near(b, expected, 1e-6, "b");
}

// One head of `dim` elements at a position; angle[i] per pair.
Values rotate_in_double(Values x, std::size_t dim, const std::vector<std::int32_t>& positions,
                        std::size_t heads, const Values& cos, const Values& sin, bool interleaved,
                        double direction) {
  const std::size_t half = cos.size() / 64;  // tables of 64 positions
  for (std::size_t row = 0; row < x.size() / dim; ++row) {
    const auto position = static_cast<std::size_t>(positions[row / heads]);
    for (std::size_t i = 0; i < half; ++i) {
      double& low = x[row * dim + (interleaved ? 2 * i : i)];
      double& high = x[row * dim + (interleaved ? 2 * i + 1 : i + half)];
      const double c = cos[position * half + i];
      const double s = direction * sin[position * half + i];
      const double rotated = low * c - high * s;
      high = high * c + low * s;
      low = rotated;
    }
  }
  return x;
}

TEST(RotaryOp, BothPairingsPartialDenseAndRagged) {
  Random random;
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const bool interleaved : {false, true}) {
      for (const std::int64_t half : {3, 8}) {  // rotary_dim 6 and 16 of head_dim 16
        const Tensor cos = random.normal({64, half}), sin = random.normal({64, half});
        const ops::RotaryTables tables{.cos = cos, .sin = sin, .interleaved = interleaved};
        const Tensor x = random.normal({2, 5, 3, 16}, dtype);
        const Tensor positions = random.integers({2, 5}, 64);
        std::vector<std::int32_t> at(positions.as<std::int32_t>(),
                                     positions.as<std::int32_t>() + 10);
        const Tensor y = poisoned(x.shape(), dtype), back = poisoned(x.shape(), dtype);
        ops::rotary(x, tables, positions, y);
        ops::rotary_backward(x, tables, positions, back);
        const double tolerance = dtype == DType::float32 ? 1e-5 : 1.0 / 64;
        const Values v = values_of(x), c = values_of(cos), s = values_of(sin);
        expect_near(y, rotate_in_double(v, 16, at, 3, c, s, interleaved, 1), tolerance, "y");
        expect_near(back, rotate_in_double(v, 16, at, 3, c, s, interleaved, -1), tolerance, "dx");

        const Tensor in_place = clone(x);  // the same tokens as a ragged batch, in place
        const TensorView ragged = in_place.view().reshape({10, 3, 16});
        ops::rotary(ragged, tables, positions.view().reshape({10}), ragged);
        expect_same_bits(ragged.reshape(x.shape()), y, "ragged");
      }
    }
  }
}

TEST(RotaryOp, SaysWhichPositionIsOutside) {
  const Tensor table = Tensor::zeros({4, 2}, DType::float32);
  const ops::RotaryTables tables{.cos = table, .sin = table};
  const Tensor x = Tensor::zeros({1, 2, 1, 4}, DType::float32);
  expect_error(
      [&] {
        ops::rotary(x, tables, int32_matrix({{0, 4}}), x);
      },
      {"[rotary]", "[0, 4)", "got 4 at token 1"});
  expect_error(
      [&] {
        ops::rotary(x, tables, int32_matrix({{0, 1, 2}}), x);
      },
      {"[rotary]", "positions must have shape [1,2]", "[1,3]"});
}

}  // namespace
}  // namespace flashmha::tests
