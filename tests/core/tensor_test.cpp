#include "flashmha/tensor.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "tests/core/expect_error.h"

namespace flashmha {
namespace {

using test::expect_error;

Tensor counting(const Shape& shape) {
  Tensor tensor = Tensor::empty(shape, DType::float32);
  std::iota(tensor.as<float>(), tensor.as<float>() + tensor.numel(), 0.0f);
  return tensor;
}

float at(const TensorView& view, std::initializer_list<std::int64_t> index) {
  std::int64_t offset = 0;
  int dim = 0;
  for (const std::int64_t i : index)
    offset += i * view.strides[dim++];
  return view.as<float>()[offset];
}

TEST(Tensor, MemoryIsAlignedAndCounted) {
  const std::size_t before = memory_stats().current_bytes;
  reset_peak_memory();
  {
    const Tensor tensor = Tensor::empty({3, 5, 7}, DType::float32);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.view().data) % 64, 0u);
    EXPECT_EQ(memory_stats().current_bytes - before, 448u);  // 420 bytes, in lines of 64
    EXPECT_TRUE(tensor.view().is_contiguous());
  }
  EXPECT_EQ(memory_stats().current_bytes, before);
  EXPECT_EQ(memory_stats().peak_bytes, before + 448u);
}

TEST(Tensor, SliceSelectTransposeAddressTheSameMemory) {
  const Tensor tensor = counting({2, 3, 4});
  const TensorView slice = tensor.view().slice(1, 1, 3);
  EXPECT_EQ(slice.shape, (Shape{2, 2, 4}));
  EXPECT_EQ(at(slice, {1, 0, 2}), 18.0f);
  const TensorView selected = tensor.view().select(0, 1);
  EXPECT_EQ(selected.shape, (Shape{3, 4}));
  EXPECT_EQ(at(selected, {2, 3}), 23.0f);
  const TensorView transposed = tensor.view().transpose(0, -1);
  EXPECT_EQ(transposed.shape, (Shape{4, 3, 2}));
  EXPECT_EQ(at(transposed, {3, 2, 1}), 23.0f);
  EXPECT_FALSE(transposed.is_contiguous());
  const Tensor copied = clone(transposed);
  EXPECT_TRUE(copied.view().is_contiguous());
  EXPECT_EQ(at(copied, {1, 2, 0}), at(tensor, {0, 2, 1}));
}

TEST(Tensor, ViewsOutsideOfTheTensorAreRefused) {
  const Tensor tensor = counting({2, 3, 4});
  const TensorView& view = tensor.view();
  EXPECT_EQ(view.size(-3), 2);
  expect_error([&] { (void)view.size(3); },
               {"[TensorView::size] dimension 3 is outside of rank 3", "[2,3,4]"});
  expect_error([&] { (void)view.stride(-4); },
               {"[TensorView::stride] dimension -4 is outside of rank 3", "[2,3,4]"});
  expect_error([&] { (void)view.transpose(0, 5); },
               {"[TensorView::transpose] dimension 5 is outside of rank 3"});
  expect_error([&] { (void)view.select(1, 3); },
               {"[TensorView::select] index 3 is outside of dimension 1 of", "[2,3,4]"});
  expect_error([&] { (void)view.select(0, -1); },
               {"[TensorView::select] index -1 is outside of dimension 0"});
  expect_error([&] { (void)view.slice(2, 1, 5); },
               {"[TensorView::slice] range [1, 5) does not fit dimension 2 of", "[2,3,4]"});
  const TensorView row = view.select(0, 0).select(0, 0);
  expect_error([&] { (void)row.select(0, 0); }, {"[TensorView::select] needs rank 2", "[4]"});
}

TEST(Tensor, ReshapeInfersOneSize) {
  const Tensor tensor = counting({2, 3, 4});
  EXPECT_EQ(tensor.view().reshape({6, -1}).shape, (Shape{6, 4}));
  expect_error(ErrorCode::invalid_argument, {"[TensorView::reshape]", "[5,-1]", "[2,3,4]"}, [&] {
    tensor.view().reshape({5, -1});
  });
  expect_error(ErrorCode::invalid_argument, {"only one size", "[-1,-1]"}, [&] {
    tensor.view().reshape({-1, -1});
  });
  expect_error(ErrorCode::invalid_argument, {"contiguous"},
               [&] { tensor.view().transpose(0, 1).reshape({24}); });
}

TEST(Tensor, BroadcastHasStrideZero) {
  const Tensor tensor = counting({3, 1});
  const TensorView wide = tensor.view().broadcast_to({2, 3, 4});
  EXPECT_EQ(wide.strides, (Shape{0, 1, 0}));
  EXPECT_EQ(at(wide, {1, 2, 3}), 2.0f);
  expect_error(ErrorCode::invalid_argument, {"[TensorView::broadcast_to]", "[3,1]", "[2,4]"}, [&] {
    tensor.view().broadcast_to({2, 4});
  });
}

TEST(Tensor, CastConvertsBetweenAllFloatingTypes) {
  const Tensor source = Tensor::from<float>({1.0f, -2.5f, 65504.0f, 0.1f}, {4});
  for (const DType narrow : {DType::bfloat16, DType::float16, DType::float64}) {
    const Tensor back = cast(cast(source, narrow), DType::float32);
    EXPECT_EQ(back.as<float>()[1], -2.5f) << dtype_name(narrow);
    EXPECT_NEAR(back.as<float>()[3], 0.1f, 5e-4f) << dtype_name(narrow);
  }
  expect_error(ErrorCode::invalid_argument, {"[copy]", "float32", "int32"},
               [&] { cast(source, DType::int32); });
  expect_error([] { cast(TensorView{}, DType::float32); }, {"[cast] needs a tensor; got none"});
  expect_error([] { clone(TensorView{}); }, {"[cast] needs a tensor; got none"});
}

TEST(Tensor, CopiesOfTheSameTypeAreOfBits) {
  const Tensor source = Tensor::empty({2, 3}, DType::boolean);
  const Tensor destination = Tensor::zeros({2, 6}, DType::boolean);
  const std::vector<std::uint8_t> bytes = {0, 1, 255, 7, 128, 2};
  std::memcpy(source.view().data, bytes.data(), bytes.size());
  TensorView every_second = destination.view();
  every_second.shape[1] = 3;
  every_second.strides[1] = 2;
  copy(source, every_second);
  const auto* found = static_cast<const std::uint8_t*>(destination.view().data);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    EXPECT_EQ(found[2 * i], bytes[i]);
  const Tensor back = Tensor::zeros({2, 3}, DType::boolean);
  copy(every_second, back);
  EXPECT_EQ(std::memcmp(back.view().data, bytes.data(), bytes.size()), 0);

  const std::uint32_t signalling = 0x7FA12345;  // a NaN that arithmetic would make a quiet one
  const Tensor number = Tensor::zeros({1}, DType::float32);
  std::memcpy(number.view().data, &signalling, sizeof signalling);
  const Tensor copied = clone(number);
  EXPECT_EQ(std::memcmp(copied.view().data, &signalling, sizeof signalling), 0);
}

TEST(Tensor, FillReachesEveryElementOfAStridedView) {
  const Tensor tensor = counting({2, 3, 4});
  fill(tensor.view().slice(2, 1, 3).transpose(0, 1), -1.0);
  for (std::int64_t i = 0; i < 24; ++i) {
    const bool inside = i % 4 == 1 || i % 4 == 2;
    EXPECT_EQ(tensor.as<float>()[i], inside ? -1.0f : static_cast<float>(i));
  }
}

TEST(Tensor, BadShapesAreRefusedWithTheirValues) {
  expect_error(ErrorCode::invalid_argument, {"[Tensor::empty]", "negative", "[2,-1]"}, [] {
    Tensor::empty({2, -1}, DType::float32);
  });
  expect_error(ErrorCode::invalid_argument, {"[4294967296,4294967296]", "2^63"}, [] {
    Tensor::empty({std::int64_t{1} << 32, std::int64_t{1} << 32}, DType::float32);
  });
  expect_error(ErrorCode::out_of_memory, {"[allocate]", "4611686018427387904"},
               [] { Tensor::empty({std::int64_t{1} << 60}, DType::float32); });
  expect_error(ErrorCode::invalid_argument, {"[Shape]", "5", "6"}, [] {
    Tensor::empty({1, 1, 1, 1, 1, 1}, DType::float32);
  });
  expect_error(ErrorCode::device, {"cuda:63 is not available"}, [] {
    Tensor::empty({1}, DType::float32, {DeviceType::cuda, 63});
  });
}

TEST(Tensor, AProcessGoesOnAfterRunningOutOfMemory) {
  const std::size_t before = memory_stats().current_bytes;
  for (int i = 0; i < 3; ++i) {
    EXPECT_THROW(Tensor::empty({std::int64_t{1} << 60}, DType::float32), Error);
  }
  EXPECT_EQ(memory_stats().current_bytes, before);
  EXPECT_EQ(Tensor::zeros({8}, DType::float32).as<float>()[7], 0.0f);
}

TEST(Tensor, EmptyTensorsAreLegal) {
  const Tensor tensor = Tensor::zeros({2, 0, 3}, DType::float32);
  EXPECT_TRUE(tensor.defined());
  EXPECT_EQ(tensor.numel(), 0);
  EXPECT_EQ(clone(tensor).shape(), tensor.shape());
}

TEST(Tensor, WrongElementTypeNamesBoth) {
  const Tensor tensor = Tensor::zeros({2}, DType::bfloat16);
  expect_error(ErrorCode::invalid_argument, {"bfloat16", "float32", "[2]"},
               [&] { tensor.as<float>(); });
  expect_error(ErrorCode::invalid_argument, {"3 values", "[2]"}, [] {
    Tensor::from<float>({1, 2, 3}, {2});
  });
}

TEST(Device, NamesRoundTrip) {
  for (const char* name : {"cpu", "cuda:0", "cuda:3"}) {
    EXPECT_EQ(device_name(parse_device(name)), name);
  }
  EXPECT_EQ(device_name(parse_device("cuda")), "cuda:0");
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x"}) {
    expect_error(ErrorCode::invalid_argument, {"[parse_device]", std::string("'") + name + "'"},
                 [&] { parse_device(name); });
  }
}

}  // namespace
}  // namespace flashmha
