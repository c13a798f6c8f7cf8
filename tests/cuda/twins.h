// The same operation on the CPU and on a GPU: tensors that exist in both places with the same bits,
// strides and gaps.
#pragma once

#include <cmath>
#include <cstddef>
#include <functional>
#include <random>
#include <vector>

#include "core/located.h"
#include "flashmha/random.h"
#include "flashmha/tensor.h"
#include "tests/cuda/gpu.h"

namespace flashmha::tests {

class Twins {
 public:
  using Views = std::vector<TensorView>;

  explicit Twins(std::uint64_t seed) : random_(seed) {}

  std::int64_t pick(std::int64_t count) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(count));
  }
  DType any_dtype() {
    constexpr DType kDtypes[] = {DType::float32, DType::bfloat16, DType::float16};
    return kDtypes[pick(3)];
  }

  // Random normal numbers.
  void input(const Shape& shape, DType dtype, double deviation = 1.0) {
    const Tensor values = Tensor::empty(shape, dtype);
    model::fill_normal(values, random_(), deviation);
    place(values, pick(3));
  }
  void input(const Shape& shape) { input(shape, any_dtype()); }
  // Integers in [0, bound).
  void indices(const Shape& shape, DType dtype, std::int64_t bound) {
    const Tensor values = Tensor::empty(shape, dtype);
    model::fill_integers(values, random_(), bound);
    place(values, 0);
  }
  // Given values, contiguous.
  void values(const Tensor& tensor) { place(tensor, 0); }
  // NaN; contiguous where operations ask for it.
  void output(const Shape& shape, DType dtype, bool contiguous = false) {
    const Tensor poison = Tensor::empty(shape, dtype);
    fill(poison, is_floating(dtype) ? NAN : 77.0);
    place(poison, contiguous ? 0 : pick(3));
  }
  void output(const Shape& shape) { output(shape, any_dtype()); }

  // Runs op on both and compares everything that the memory of all tensors holds. `rounded`: how
  // large a value may be that is rounded to the dtype before something is added to it.
  void expect_equal(const std::function<void(const Views&)>& op, double slack = 1.0,
                    double rounded = 0.0) {
    op(host_);
    op(gpu_);
    synchronize(kGpu);
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      SCOPED_TRACE("tensor " + std::to_string(i) + ": " + to_string(host_[i]));
      compare(to_device(gpu_blocks_[i], {}), blocks_[i], slack, rounded);
    }
  }

  const Views& host() const { return host_; }
  const Views& gpu() const { return gpu_; }

  // Differences of an ulp of the dtype, and of a few roundings of float32 of the largest element.
  static void compare(const TensorView& actual, const TensorView& expected, double slack = 1.0,
                      double rounded = 0.0) {
    const DType wide = is_floating(expected.dtype) ? DType::float64 : DType::int64;
    const Tensor got = cast(actual, wide);
    const Tensor want = cast(expected, wide);
    if (wide == DType::int64) {
      for (std::int64_t i = 0; i < want.numel(); ++i)
        ASSERT_EQ(got.as<std::int64_t>()[i], want.as<std::int64_t>()[i]) << "at " << i;
      return;
    }
    double largest = 0.0;
    for (std::int64_t i = 0; i < want.numel(); ++i) {
      const double x = want.as<double>()[i];
      if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
    }
    const double ulp = expected.dtype == DType::bfloat16  ? 0x1p-7
                       : expected.dtype == DType::float16 ? 0x1p-10
                                                          : 0x1p-20;
    for (std::int64_t i = 0; i < want.numel(); ++i) {
      const double a = got.as<double>()[i];
      const double b = want.as<double>()[i];
      if (std::isnan(b) || std::isinf(b)) {
        ASSERT_TRUE(a == b || (std::isnan(a) && std::isnan(b))) << a << " and " << b << " at " << i;
        continue;
      }
      const double early = rounded > 0.0 ? ulp / 2 * (std::abs(b) + rounded) : 0.0;
      ASSERT_LE(std::abs(a - b), ulp * std::abs(b) + early + slack * 4e-6 * largest)
          << a << " and " << b << " at " << i;
    }
  }

 private:
  // kind 0: as it is; 1: with gaps after every row, aligned; 2: odd gaps, from an odd place on.
  void place(const TensorView& values, std::int64_t kind) {
    Shape shape = values.shape;
    const int last = shape.rank - 1;
    const std::int64_t before = kind == 2 ? 1 : 0;
    if (kind == 1) shape[last] = (shape[last] + 15) / 8 * 8;
    if (kind == 2) shape[last] += 4;
    Tensor block = Tensor::empty(shape, values.dtype);
    fill(block, is_floating(values.dtype) ? NAN : 55.0);
    const auto window = [&](const Tensor& whole) {
      return kind == 0 ? whole.view()
                       : whole.view().slice(last, before, before + values.size(last));
    };
    copy(values, window(block));
    Tensor gpu_block = to_device(block, kGpu);
    host_.push_back(window(block));
    gpu_.push_back(window(gpu_block));
    blocks_.push_back(std::move(block));
    gpu_blocks_.push_back(std::move(gpu_block));
  }

  std::mt19937_64 random_;
  std::vector<Tensor> blocks_, gpu_blocks_;
  Views host_, gpu_;
};

}  // namespace flashmha::tests
