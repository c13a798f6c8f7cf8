// Matrix products on a GPU against the CPU's.
#include <fmt/format.h>

#include "flashmha/ops.h"
#include "tests/attention/instance.h"
#include "tests/cuda/twins.h"

namespace flashmha::tests {
namespace {

using DeviceMatmul = OnGpu;
using Views = Twins::Views;

TEST_F(DeviceMatmul, EveryLayoutAndDtype) {
  constexpr double kLargestInput =
      5.0;  // of normal numbers; rounding of a product counts from here
  const std::int64_t sizes[] = {1, 2, 7, 16, 33, 64, 130};
  for (int round = 0; round < 150 && !HasFatalFailure(); ++round) {
    Twins twins(test_seed() + static_cast<std::uint64_t>(round));
    const std::int64_t m = sizes[twins.pick(7)];
    const std::int64_t n = sizes[twins.pick(7)];
    const std::int64_t k = sizes[twins.pick(7)];
    const bool one_dtype = twins.pick(2) == 0;
    const DType dtype = twins.any_dtype();
    const auto any = [&] { return one_dtype ? dtype : twins.any_dtype(); };
    bool turned[3] = {};  // given as the transpose of what lies in memory
    for (bool& turn : turned)
      turn = twins.pick(2) == 0;
    const auto shape = [](std::int64_t rows, std::int64_t columns, bool turn) {
      return turn ? Shape{columns, rows} : Shape{rows, columns};
    };
    twins.input(shape(m, k, turned[0]), any());
    twins.input(shape(k, n, turned[1]), any());
    const float beta = static_cast<float>(twins.pick(3)) * 0.5f;
    if (beta == 0.0f) {
      twins.output(shape(m, n, turned[2]), any());
    } else {
      twins.input(shape(m, n, turned[2]), any());
    }
    twins.input({n}, any());
    const bool biased = twins.pick(2) == 0;
    SCOPED_TRACE(fmt::format("round {}: {} x {} x {}, beta {}, bias {}, turned {} {} {}", round, m,
                             n, k, beta, biased, turned[0], turned[1], turned[2]));
    twins.expect_equal(
        [&](const Views& v) {
          const auto view = [&](std::size_t i) { return turned[i] ? v[i].transpose(0, 1) : v[i]; };
          ops::MatmulOptions options{.alpha = 0.75f, .beta = beta};
          if (biased) options.bias = v[3];
          ops::matmul(view(0), view(1), view(2), options);
        },
        4.0, beta * kLargestInput + (biased ? kLargestInput : 0.0));
  }
}

// The products of plain attention: two dimensions of batch, groups that share a key head.
TEST_F(DeviceMatmul, BatchesWithSharedOperands) {
  for (int round = 0; round < 20 && !HasFatalFailure(); ++round) {
    Twins twins(test_seed() + static_cast<std::uint64_t>(round));
    const std::int64_t group = 1 + twins.pick(3);
    const DType dtype = twins.any_dtype();
    twins.input({2, 9, 3 * group, 16}, dtype);
    twins.input({2, 11, 3, 16}, dtype);
    twins.output({2, 3 * group, 9, 11}, dtype, true);
    twins.expect_equal(
        [&](const Views& v) {
          const auto by_group = [&](const TensorView& x, std::int64_t heads) {
            TensorView view = x;
            view.shape = {x.size(0), 3, heads, x.size(1), x.size(3)};
            view.strides = {x.stride(0), heads * x.stride(2), x.stride(2), x.stride(1),
                            x.stride(3)};
            return view;
          };
          ops::matmul(by_group(v[0], group), by_group(v[1], 1).transpose(-1, -2),
                      v[2].reshape({2, 3, group, 9, 11}), {.alpha = 0.25f});
        },
        4.0);
  }
}

// Weight gradients of a 16-bit model are added up in float32.
TEST_F(DeviceMatmul, NoDepthAndNoTf32) {
  Twins twins(test_seed());
  twins.input({5, 0}, DType::float32);
  twins.input({0, 6}, DType::float32);
  twins.input({5, 6}, DType::float32);
  twins.expect_equal([](const Views& v) { ops::matmul(v[0], v[1], v[2], {.beta = 2.0f}); });
  Twins large(test_seed());
  large.input({300, 1000}, DType::float32);
  large.input({1000, 200}, DType::float32);
  large.output({300, 200}, DType::float32);
  large.expect_equal([](const Views& v) { ops::matmul(v[0], v[1], v[2]); });
}

}  // namespace
}  // namespace flashmha::tests
