#include "flashmha/dlpack.h"

#include <dlpack/dlpack.h>
#include <gtest/gtest.h>

#include <array>

#include "tests/core/expect_error.h"

namespace flashmha {
namespace {

// A foreign tensor on the stack that counts how often it is released.
struct Foreign {
  std::array<float, 12> values{};
  std::array<std::int64_t, 2> shape{2, 3};
  std::array<std::int64_t, 2> strides{6, 2};
  int releases = 0;
  DLManagedTensor managed{};

  Foreign() {
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(i);
    managed.dl_tensor = {values.data(), {kDLCPU, 0},    2, {kDLFloat, 32, 1},
                         shape.data(),  strides.data(), 4};
    managed.manager_ctx = this;
    managed.deleter = [](DLManagedTensor* self) {
      ++static_cast<Foreign*>(self->manager_ctx)->releases;
    };
  }
};

TEST(DLPack, ImportKeepsStridesAndOffsetAndReleasesOnce) {
  Foreign foreign;
  {
    const Tensor tensor = from_dlpack(&foreign.managed);
    EXPECT_EQ(tensor.shape(), (Shape{2, 3}));
    EXPECT_EQ(tensor.view().strides, (Shape{6, 2}));
    EXPECT_EQ(tensor.as<float>(), foreign.values.data() + 1);  // byte_offset 4
    EXPECT_EQ(foreign.releases, 0);
  }
  EXPECT_EQ(foreign.releases, 1);
}

TEST(DLPack, MissingStridesMeanContiguous) {
  Foreign foreign;
  foreign.managed.dl_tensor.strides = nullptr;
  EXPECT_EQ(from_dlpack(&foreign.managed).view().strides, (Shape{3, 1}));
}

TEST(DLPack, ExportOwnsTheTensorUntilItIsDeleted) {
  const std::size_t before = memory_stats().current_bytes;
  DLManagedTensor* exported = to_dlpack(Tensor::from<BFloat16>({BFloat16(1.5f)}, {1, 1}));
  EXPECT_EQ(exported->dl_tensor.dtype.code, kDLBfloat);
  EXPECT_EQ(exported->dl_tensor.dtype.bits, 16);
  EXPECT_EQ(exported->dl_tensor.ndim, 2);
  EXPECT_GT(memory_stats().current_bytes, before);
  exported->deleter(exported);
  EXPECT_EQ(memory_stats().current_bytes, before);
}

TEST(DLPack, EveryElementTypeRoundTrips) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::float64,
                            DType::int32, DType::int64, DType::boolean}) {
    const Tensor back = from_dlpack(to_dlpack(Tensor::zeros({3}, dtype)));
    EXPECT_EQ(back.dtype(), dtype) << dtype_name(dtype);
  }
}

TEST(DLPack, UnknownTensorsAreRefusedAndStayWithTheCaller) {
  Foreign foreign;
  foreign.managed.dl_tensor.dtype = {kDLComplex, 64, 1};
  test::expect_error(ErrorCode::invalid_argument, {"[from_dlpack]", "code 5", "64 bits"},
                     [&] { from_dlpack(&foreign.managed); });
  foreign.managed.dl_tensor.dtype = {kDLFloat, 32, 1};
  foreign.managed.dl_tensor.device = {kDLMetal, 0};
  test::expect_error(ErrorCode::invalid_argument, {"[from_dlpack]", "got 8"},
                     [&] { from_dlpack(&foreign.managed); });
  foreign.managed.dl_tensor.device = {kDLCPU, 0};
  foreign.managed.dl_tensor.ndim = 0;
  test::expect_error([&] { from_dlpack(&foreign.managed); },
                     {"[from_dlpack] needs at least one dimension; got 0"});
  EXPECT_EQ(foreign.releases, 0);
}

TEST(DLPack, NoTensorIsRefused) {
  test::expect_error([] { from_dlpack(nullptr); },
                     {"[from_dlpack] needs a tensor; got a null pointer"});
  test::expect_error([] { to_dlpack(Tensor()); }, {"[to_dlpack] needs a tensor; got none"});
}

}  // namespace
}  // namespace flashmha
