// Memory, copies and errors of GPUs.
#include <cmath>
#include <limits>
#include <random>

#include "cuda/launch.h"
#include "flashmha/error.h"
#include "flashmha/tensor.h"
#include "tests/attention/instance.h"
#include "tests/compare.h"
#include "tests/core/expect_error.h"
#include "tests/cuda/gpu.h"

namespace flashmha::tests {
using test::expect_error;

namespace {

using DeviceMemory = OnGpu;
using DeviceCopy = OnGpu;

constexpr DType kFloating[] = {DType::float32, DType::bfloat16, DType::float16, DType::float64};
constexpr DType kInteger[] = {DType::int32, DType::int64, DType::boolean};

// Random numbers, and what is special among them.
Tensor random_tensor(const Shape& shape, DType dtype, std::mt19937_64& random) {
  const DType wide = is_floating(dtype) ? DType::float64 : DType::int64;
  const Tensor values = Tensor::empty(shape, wide);
  std::normal_distribution<double> normal(0.0, 100.0);
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    const double value = normal(random);
    if (wide == DType::int64) {
      values.as<std::int64_t>()[i] = static_cast<std::int64_t>(value);
    } else {
      values.as<double>()[i] = i % 17 == 0   ? std::numeric_limits<double>::infinity()
                               : i % 19 == 0 ? 1e-42
                                             : value;
    }
  }
  return cast(values, dtype);
}

// A window with gaps in every dimension, its last two dimensions swapped.
TensorView window_of(const Tensor& block) {
  TensorView view = block;
  for (int dim = 0; dim < view.rank(); ++dim)
    view = view.slice(dim, 1, view.size(dim) - 1);
  return view.transpose(1, 2);
}

TEST_F(DeviceCopy, EveryConversionGivesTheHostsBits) {
  std::mt19937_64 random(test_seed());
  const auto check = [&](DType from, DType to) {
    SCOPED_TRACE(std::string(dtype_name(from)) + " to " + dtype_name(to));
    const Tensor source = random_tensor({5, 7, 9}, from, random);
    const Tensor expected = cast(source, to);
    const Tensor on_gpu = Tensor::empty(source.shape(), from, kGpu);
    copy(source, on_gpu);
    const Tensor converted = cast(on_gpu, to);
    const Tensor back = Tensor::empty(source.shape(), to);
    copy(converted, back);
    EXPECT_TRUE(same_bits(back, expected));
    const Tensor converted_on_the_way = Tensor::empty(source.shape(), to, kGpu);
    copy(source, converted_on_the_way);
    fill(back, 0.0);
    copy(converted_on_the_way, back);
    EXPECT_TRUE(same_bits(back, expected));
  };
  for (const DType from : kFloating) {
    for (const DType to : kFloating)
      check(from, to);
  }
  for (const DType from : kInteger) {
    for (const DType to : kInteger)
      check(from, to);
  }
}

TEST_F(DeviceCopy, StridesOnEitherSideAndWhatIsBetweenStays) {
  std::mt19937_64 random(test_seed());
  const Tensor source = random_tensor({6, 8, 10}, DType::float32, random);
  const Tensor blank = random_tensor({6, 8, 10}, DType::float32, random);
  const Tensor expected = clone(blank);
  copy(window_of(source), window_of(expected));

  const Tensor gpu_source = Tensor::empty(source.shape(), DType::float32, kGpu);
  copy(source, gpu_source);
  const Tensor gpu_destination = Tensor::empty(source.shape(), DType::float32, kGpu);
  const Tensor result = Tensor::empty(source.shape(), DType::float32);
  copy(blank, gpu_destination);
  copy(window_of(gpu_source), window_of(gpu_destination));
  copy(gpu_destination, result);
  EXPECT_TRUE(same_bits(result, expected));

  copy(blank, gpu_destination);
  copy(window_of(source), window_of(gpu_destination));
  copy(gpu_destination, result);
  EXPECT_TRUE(same_bits(result, expected));

  copy(blank, result);
  copy(window_of(gpu_source), window_of(result));
  EXPECT_TRUE(same_bits(result, expected));
}

TEST_F(DeviceCopy, FillsWhatTheHostFills) {
  std::mt19937_64 random(test_seed());
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::float64,
                            DType::int32, DType::int64, DType::boolean}) {
    for (const double value : {0.0, 1.0, 3.0}) {
      const Tensor host = random_tensor({4, 6, 8}, dtype, random);
      const Tensor gpu = Tensor::empty(host.shape(), dtype, kGpu);
      copy(host, gpu);
      fill(window_of(host), value);
      fill(window_of(gpu), value);
      const Tensor back = Tensor::empty(host.shape(), dtype);
      copy(gpu, back);
      EXPECT_TRUE(same_bits(back, host)) << dtype_name(dtype) << " " << value;
    }
  }
}

TEST_F(DeviceMemory, IsCountedWhileItIsAlive) {
  reset_peak_memory(kGpu);
  const std::size_t before = memory_stats(kGpu).current_bytes;
  {
    const Tensor tensor = Tensor::zeros({1000}, DType::float32, kGpu);
    EXPECT_EQ(memory_stats(kGpu).current_bytes, before + 4032);
  }
  EXPECT_EQ(memory_stats(kGpu).current_bytes, before);
  EXPECT_EQ(memory_stats(kGpu).peak_bytes, before + 4032);
}

TEST_F(DeviceMemory, AProcessGoesOnAfterRunningOutOfIt) {
  const std::size_t before = memory_stats(kGpu).current_bytes;
  for (int i = 0; i < 3; ++i) {
    expect_error(ErrorCode::out_of_memory, {"[allocate]", "cuda:0", "are free"},
                 [] { Tensor::empty({std::int64_t{1} << 45}, DType::float32, kGpu); });
  }
  EXPECT_EQ(memory_stats(kGpu).current_bytes, before);
  const Tensor zeros = Tensor::zeros({8}, DType::float32, kGpu);
  const Tensor back = Tensor::empty({8}, DType::float32);
  copy(zeros, back);
  EXPECT_EQ(back.as<float>()[7], 0.0f);
}

TEST(DeviceErrors, ADeviceThatIsNotThere) {
  for (const int index : {63, 64, -1}) {
    expect_error(ErrorCode::device, {"[allocate]", "is not available"}, [&] {
      Tensor::empty({1}, DType::float32, {DeviceType::cuda, index});
    });
  }
}

TEST(DeviceErrors, AFailedLaunchNamesKernelAndGeometry) {
  const cuda::Launch launch{cudaErrorInvalidConfiguration, "sm80_forward", 123, 128, 65536};
  AttentionCall call;
  call.name = "flash_attn_func";
  Problem problem;
  problem.sizes.seqlen_q = 77;
  expect_error(ErrorCode::device,
               {"[flash_attn_func]", "sm80_forward was not launched", "123 blocks of 128 threads",
                "65536 bytes", "77"},
               [&] { cuda::require_launched(launch, call, problem, nullptr); });
  EXPECT_NO_THROW(cuda::require_launched({.kernel = "sm80_forward"}, call, problem, nullptr));
}

}  // namespace
}  // namespace flashmha::tests
