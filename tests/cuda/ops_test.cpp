// Every operation on a GPU against the same on the CPU: random shapes, strides and dtypes.
#include "flashmha/ops.h"

#include "tests/attention/instance.h"
#include "tests/compare.h"
#include "tests/cuda/twins.h"

namespace flashmha::tests {
namespace {

using DeviceOps = OnGpu;
using Views = Twins::Views;

constexpr int kRounds = 24;

const Shape kShapes[] = {{1},         {7},           {3, 5, 13}, {4, 64},
                         {2, 3, 130}, {5, 2, 3, 24}, {9, 1500},  {3, 4104}};

Shape any_shape(Twins& twins) {
  return kShapes[twins.pick(std::ssize(kShapes))];
}

Shape leading(const Shape& shape) {
  Shape result = shape;
  if (result.rank == 1) return {1};
  result[--result.rank] = 0;
  return result;
}

// Body(twins) in many rounds, each with its own numbers.
template <class Body>
void in_rounds(Body body) {
  for (int round = 0; round < kRounds && !testing::Test::HasFatalFailure(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    Twins twins(test_seed() + static_cast<std::uint64_t>(round));
    body(twins);
  }
}

TEST_F(DeviceOps, Elementwise) {
  in_rounds([](Twins& twins) {
    const Shape shape = any_shape(twins);
    for (int i = 0; i < 3; ++i)
      twins.input(shape);
    for (int i = 0; i < 8; ++i)
      twins.output(shape);
    twins.expect_equal([](const Views& v) {
      ops::add(v[0], v[1], v[3]);
      ops::glu(ops::Activation::silu, v[0], v[1], v[4]);
      ops::glu(ops::Activation::gelu_tanh, v[0], v[1], v[5]);
      ops::glu_backward(ops::Activation::silu, v[2], v[0], v[1], v[6], v[7]);
      ops::softcap(v[0], 1.5f, v[8]);
      ops::softcap_backward(v[2], v[0], 1.5f, v[9]);
      ops::glu_backward(ops::Activation::gelu_tanh, v[2], v[0], v[1], v[10], v[2]);
    });
  });
}

TEST_F(DeviceOps, RmsNorm) {
  in_rounds([](Twins& twins) {
    Shape shape = any_shape(twins);
    if (shape == Shape{1}) shape = {6};  // of one element all that is left is rounding
    const std::int64_t n = shape[shape.rank - 1];
    twins.input(shape);
    twins.input({n});
    twins.input(shape);
    twins.output(shape);
    twins.output(leading(shape), DType::float32, true);
    twins.output(shape);
    twins.values(Tensor::zeros({n}, DType::float32));
    const ops::RMSNormOptions options{.eps = 1e-5f, .weight_offset = 1.0f};
    twins.expect_equal(
        [&](const Views& v) {
          ops::rms_norm(v[0], v[1], options, v[3], v[4]);
          ops::rms_norm_backward(v[2], v[0], v[1], options, v[4], v[5], v[6]);
          ops::rms_norm_backward(v[2], v[0], v[1], options, v[4], v[2], v[6]);  // in place
        },
        4.0);
  });
}

TEST_F(DeviceOps, BiasGradientOfManyRows) {
  for (const std::int64_t rows : {1, 63, 1000, 5000}) {
    Twins twins(test_seed());
    twins.input({rows, 300});
    twins.input({300}, DType::float32, 0.0);
    twins.values(Tensor::zeros({300}, DType::float32));
    twins.expect_equal([](const Views& v) { ops::bias_gradient(v[0], v[2]); }, 10.0);
  }
}

TEST_F(DeviceOps, Rotary) {
  in_rounds([](Twins& twins) {
    const std::int64_t head_dims[] = {8, 10, 64, 80, 128};
    const std::int64_t head_dim = head_dims[twins.pick(5)];
    const std::int64_t half = twins.pick(2) == 0 ? head_dim / 2 : 1 + twins.pick(head_dim / 2);
    const bool interleaved = twins.pick(2) == 0;
    const Shape shape{3, 7, 2, head_dim};
    twins.input(shape);
    twins.values(Tensor::zeros({1}, DType::float32));
    const Tensor cos = Tensor::empty({50, half}, DType::float32);
    const Tensor sin = Tensor::empty({50, half}, DType::float32);
    model::fill_normal(cos, 1);
    model::fill_normal(sin, 2);
    twins.values(cos);
    twins.values(sin);
    twins.indices({3, 7}, DType::int32, 50);
    twins.output(shape);
    twins.output(shape);
    twins.expect_equal([&](const Views& v) {
      const ops::RotaryTables tables{.cos = v[2], .sin = v[3], .interleaved = interleaved};
      ops::rotary(v[0], tables, v[4], v[5]);
      ops::rotary_backward(v[0], tables, v[4], v[6]);
      ops::rotary(v[0], tables, v[4], v[0]);  // in place
    });
  });
}

TEST_F(DeviceOps, Softmax) {
  in_rounds([](Twins& twins) {
    const std::int64_t seqlen_k = twins.pick(2) == 0 ? 37 : 1300;
    const std::int64_t seqlen_q = twins.pick(2) == 0 ? 5 : 40;
    const Shape shape{2, 3, seqlen_q, seqlen_k};
    ops::SoftmaxOptions options{.softcap = twins.pick(2) == 0 ? 0.0f : 3.0f,
                                .window_left = twins.pick(2) == 0 ? -1 : 11,
                                .window_right = twins.pick(2) == 0 ? -1 : 0,
                                .shift = seqlen_k - seqlen_q};
    const bool masked = twins.pick(2) == 0;
    twins.input(shape);
    twins.input(shape);
    const Tensor mask = Tensor::empty({2, 1, seqlen_q, seqlen_k}, DType::boolean);
    for (std::int64_t i = 0; i < mask.numel(); ++i)
      mask.as<bool>()[i] = i / seqlen_k != 2 && twins.pick(3) != 0;
    twins.values(mask);
    const Tensor sinks = Tensor::empty({3}, twins.any_dtype());
    model::fill_normal(sinks, 5);
    twins.values(sinks);
    twins.output(shape);
    twins.output({2, 3, seqlen_q}, DType::float32, true);
    twins.output(shape);
    twins.values(Tensor::zeros({3}, DType::float32));
    twins.input(shape);  // probabilities and lse of the backward
    const Tensor lse = Tensor::empty({2, 3, seqlen_q}, DType::float32);
    model::fill_normal(lse, 6);
    twins.values(lse);
    twins.expect_equal(
        [&](const Views& v) {
          ops::SoftmaxOptions o = options;
          if (masked) o.mask = v[2];
          o.sinks = v[3];
          ops::softmax(v[0], o, v[4], v[5]);
          ops::softmax_backward(v[1], {.probabilities = v[8], .scores = v[0], .lse = v[9]}, o, v[6],
                                v[7]);
          o.sinks = {};
          ops::softmax(v[0], o, v[0]);  // in place
        },
        8.0);
  });
}

TEST_F(DeviceOps, DropoutHasTheSameBits) {
  in_rounds([](Twins& twins) {
    const Shape shape{2, 3, 5, 1 + twins.pick(60)};
    twins.input(shape);
    twins.output(shape);
    twins.expect_equal([](const Views& v) {
      ops::attention_dropout(v[0], {.p = 0.3f, .seed = 12345678901, .offset = 77}, v[1]);
    });
  });
}

TEST_F(DeviceOps, Rows) {
  in_rounds([](Twins& twins) {
    const DType dtype = twins.any_dtype();
    const std::int64_t width = 1 + twins.pick(70);
    twins.input({9, width}, dtype);
    twins.values(Tensor::from<std::int64_t>({8, 0, 3, 5}, {4}));
    twins.output({4, width}, dtype);
    twins.output({9, width}, dtype);
    twins.input({11, width});
    twins.indices({2, 3}, twins.pick(2) == 0 ? DType::int32 : DType::int64, 11);
    twins.output({2, 3, width});
    twins.input({9, width});
    twins.output({9}, DType::int32, true);
    twins.expect_equal([](const Views& v) {
      ops::gather_rows(v[0], v[1], v[2]);
      ops::scatter_rows(v[2], v[1], v[3]);
      ops::embedding(v[4], v[5], v[6], 2.5f);
      ops::argmax(v[7], v[8]);
    });
  });
}

TEST_F(DeviceOps, ArgmaxOfEqualsAndNaN) {
  for (const std::int64_t n : {5, 3000}) {
    const Tensor x = Tensor::zeros({3, n}, DType::float32);
    x.as<float>()[n - 1] = 1.0f;               // row 0: the last
    x.as<float>()[n + 3] = NAN;                // row 1: the first NaN
    x.as<float>()[n + 4] = NAN;                //
    fill(x.view().slice(0, 2, 3), -INFINITY);  // row 2: the first of equals
    const Tensor gpu = to_device(x, kGpu);
    const Tensor out = Tensor::empty({3}, DType::int32, kGpu);
    ops::argmax(gpu, out);
    const Tensor host = to_device(out, {});
    EXPECT_EQ(host.as<std::int32_t>()[0], n - 1);
    EXPECT_EQ(host.as<std::int32_t>()[1], 3);
    EXPECT_EQ(host.as<std::int32_t>()[2], 0);
  }
}

TEST_F(DeviceOps, EmbeddingBackward) {
  for (const std::int64_t vocabulary : {3, 1000}) {
    Twins twins(test_seed());
    twins.input({300, 70});
    twins.indices({300}, DType::int64, vocabulary);
    twins.input({vocabulary, 70}, DType::float32);
    twins.expect_equal([](const Views& v) { ops::embedding_backward(v[0], v[1], v[2], 1.5f); },
                       10.0);
  }
}

TEST_F(DeviceOps, CrossEntropy) {
  in_rounds([](Twins& twins) {
    const std::int64_t vocabulary = twins.pick(2) == 0 ? 50 : 5003;
    const std::int64_t rows = 1 + twins.pick(40);
    twins.input({rows, vocabulary}, twins.any_dtype(), 3.0);
    const Tensor targets = Tensor::empty({rows}, DType::int64);
    for (std::int64_t i = 0; i < rows; ++i)
      targets.as<std::int64_t>()[i] = twins.pick(4) == 0 ? -100 : twins.pick(vocabulary);
    twins.values(targets);
    twins.output({2}, DType::float32, true);
    twins.output({rows}, DType::float32, true);
    twins.output({rows, vocabulary});
    twins.values(Tensor::from<float>({0.5f}, {1}));
    twins.expect_equal([](const Views& v) {
      ops::cross_entropy(v[0], v[1], -100, v[2], v[3]);
      ops::CrossEntropySaved saved{.targets = v[1], .lse = v[3], .loss = v[2]};
      ops::cross_entropy_backward(v[0], saved, v[4]);
      saved.scale = v[5];
      ops::cross_entropy_backward(v[0], saved, v[0]);  // in place
    });
  });
}

TEST_F(DeviceOps, RealTokensOfAPaddedBatch) {
  for (const std::int64_t seqlen : {1, 31, 32, 255, 256, 257, 1000}) {
    for (const DType dtype : {DType::boolean, DType::int32, DType::int64}) {
      Twins twins(test_seed() + static_cast<std::uint64_t>(seqlen));
      const std::int64_t batch = 1 + twins.pick(5);
      const Tensor mask = Tensor::empty({batch, seqlen}, DType::int64);
      const Tensor reserved = Tensor::empty({batch, seqlen}, DType::int64);
      for (std::int64_t i = 0; i < mask.numel(); ++i) {
        const std::int64_t kind = twins.pick(4);
        mask.as<std::int64_t>()[i] = kind < 2;
        reserved.as<std::int64_t>()[i] = kind == 2;
      }
      twins.values(cast(mask, dtype));
      twins.values(cast(reserved, dtype));
      const std::int64_t total = batch * seqlen;
      for (const std::int64_t room : {total, total + 5, total / 3}) {
        twins.output({room}, DType::int64, true);
        twins.output({batch + 1}, DType::int32, true);
        twins.output({batch}, DType::int32, true);
      }
      twins.expect_equal([](const Views& v) {
        for (std::size_t i = 2; i < v.size(); i += 3) {
          ops::unpad(v[0], v[1], v[i], v[i + 1], v[i + 2]);
          ops::unpad(v[0], {}, v[i], v[i + 1]);
          ops::unpad(v[0], v[1], v[i], v[i + 1], v[i + 2]);
        }
      });
    }
  }
}

TEST_F(DeviceOps, RowsOfNobody) {
  Twins twins(test_seed());
  twins.input({9, 40}, DType::bfloat16);
  twins.values(Tensor::from<std::int64_t>({3, -1, 0, 8, -1}, {5}));
  twins.output({5, 40}, DType::bfloat16, true);
  twins.output({9, 40}, DType::bfloat16, true);
  twins.expect_equal([](const Views& v) {
    ops::gather_rows(v[0].slice(1, 0, 40), v[1], v[2]);
    ops::scatter_rows(v[2], v[1], v[3]);
  });
}

TEST_F(DeviceOps, AdamWOfManyTensors) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    Twins twins(test_seed());
    constexpr std::size_t kTensors = 120;
    const bool narrow = dtype != DType::float32;
    for (std::size_t i = 0; i < kTensors; ++i) {
      const Shape shape{i == 7 ? 40000 : 1 + twins.pick(900)};
      const Tensor value = Tensor::empty(shape, dtype);
      const Tensor gradient = Tensor::empty(shape, DType::float32);
      model::fill_normal(value, 2 * i);
      model::fill_normal(gradient, 2 * i + 1);
      twins.values(value);
      twins.values(gradient);
      twins.values(Tensor::zeros(shape, DType::float32));
      twins.values(Tensor::zeros(shape, DType::float32));
      twins.values(cast(value, DType::float32));
    }
    twins.values(Tensor::zeros({1}, DType::float32));
    twins.values(Tensor::zeros({3}, DType::float32));
    twins.expect_equal([&](const Views& v) {
      std::vector<ops::AdamWState> states;
      std::vector<TensorView> gradients;
      for (std::size_t i = 0; i < kTensors; ++i) {
        states.push_back({.parameter = v[5 * i],
                          .gradient = v[5 * i + 1],
                          .moment1 = v[5 * i + 2],
                          .moment2 = v[5 * i + 3]});
        if (narrow) states.back().master = v[5 * i + 4];
        gradients.push_back(v[5 * i + 1]);
      }
      for (std::int64_t step = 1; step <= 3; ++step) {
        const ops::AdamWOptions options{.max_gradient_norm = 1.0f};
        const auto schedule = ops::adamw_schedule(options, 1e-3f, step);
        const TensorView& norm = v[5 * kTensors];
        const TensorView& device_schedule = v[5 * kTensors + 1];
        ops::gradient_norm(gradients, norm);
        copy(view_of(schedule.data(), {3}), device_schedule);
        ASSERT_GT(max_abs(to_device(gradients.front(), {})), 0.0);
        ops::adamw(states, {.schedule = device_schedule, .gradient_norm = norm}, options);
        for (std::size_t i = 0; i < kTensors; ++i)
          copy(v[5 * i], gradients[i]);  // zeros after the step
      }
    });
  }
}

TEST_F(DeviceOps, SumsHaveTheSameBitsEveryTime) {
  Twins twins(test_seed());
  twins.input({4000, 96}, DType::bfloat16);
  twins.indices({4000}, DType::int64, 50);
  twins.values(Tensor::zeros({50, 96}, DType::float32));
  twins.values(Tensor::zeros({96}, DType::float32));
  twins.values(Tensor::zeros({96, 96}, DType::float32));
  const Views& v = twins.gpu();
  const auto sums = [&] {
    for (std::size_t i = 2; i < 5; ++i)
      fill(v[i], 0.0);
    ops::embedding_backward(v[0], v[1], v[2]);
    ops::bias_gradient(v[0], v[3]);
    ops::matmul(v[0].transpose(0, 1), v[0], v[4], {.beta = 1.0f});
    std::vector<Tensor> results;
    for (std::size_t i = 2; i < 5; ++i)
      results.push_back(to_device(v[i], {}));
    return results;
  };
  const std::vector<Tensor> first = sums();
  for (int repeat = 0; repeat < 50; ++repeat) {
    const std::vector<Tensor> again = sums();
    for (std::size_t i = 0; i < first.size(); ++i)
      ASSERT_TRUE(same_bits(again[i], first[i])) << i;
  }
}

TEST_F(DeviceOps, WrongIndicesGiveNaNInTheirOwnRow) {
  const Tensor table = Tensor::zeros({4, 8}, DType::bfloat16, kGpu);
  const Tensor ids =
      to_device(Tensor::from<std::int64_t>({1, -5, 3, std::int64_t{1} << 40}, {4}), kGpu);
  const Tensor out = Tensor::zeros({4, 8}, DType::float32, kGpu);
  const Tensor gathered = Tensor::zeros({4, 8}, DType::bfloat16, kGpu);
  const Tensor sums = Tensor::zeros({4, 8}, DType::float32, kGpu);
  ops::embedding(table, ids, out);
  ops::gather_rows(table, ids, gathered);
  ops::scatter_rows(table, ids, gathered);
  ops::gather_rows(table, ids, gathered);
  ops::embedding_backward(table, ids, sums);
  const Tensor host = to_device(out, {});
  const Tensor rows = cast(to_device(gathered, {}), DType::float32);
  for (const std::int64_t row : {0, 1, 2, 3}) {
    const bool wrong = row % 2 == 1;
    EXPECT_EQ(std::isnan(host.as<float>()[row * 8]), wrong) << row;
    EXPECT_EQ(std::isnan(rows.as<float>()[row * 8 + 7]), wrong) << row;
  }
  const Tensor targets = to_device(Tensor::from<std::int64_t>({1, 9}, {2}), kGpu);
  const Tensor loss = Tensor::zeros({2}, DType::float32, kGpu);
  const Tensor lse = Tensor::zeros({2}, DType::float32, kGpu);
  ops::cross_entropy(table.view().slice(0, 0, 2), targets, -100, loss, lse);
  EXPECT_TRUE(std::isnan(to_device(loss, {}).as<float>()[0]));
}

}  // namespace
}  // namespace flashmha::tests
