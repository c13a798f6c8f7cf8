#include "flashmha/safetensors.h"

#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/core/expect_error.h"
#include "tests/io/folder.h"
#include "tests/io/limited.h"
#include "tests/io/safetensors_bytes.h"

namespace flashmha::io {
namespace {

using test::expect_error;
using test::Folder;
using test::safetensors_bytes;

Tensor random_tensor(const Shape& shape, DType dtype, std::mt19937_64& random) {
  Tensor values = Tensor::empty(shape, DType::float64);
  for (std::int64_t i = 0; i < values.numel(); ++i)
    values.as<double>()[i] = static_cast<double>(random()) * 0x1p-63 - 1.0;
  if (is_floating(dtype)) return cast(values, dtype);
  Tensor integers = Tensor::empty(shape, DType::int64);
  for (std::int64_t i = 0; i < integers.numel(); ++i)
    integers.as<std::int64_t>()[i] = static_cast<std::int64_t>(random() % 2);
  return cast(integers, dtype);
}

void expect_same(const TensorView& found, const TensorView& expected, const std::string& name) {
  ASSERT_EQ(found.dtype, expected.dtype) << name;
  ASSERT_EQ(found.shape, expected.shape) << name;
  const Tensor contiguous = clone(expected);
  if (found.numel() == 0) return;
  EXPECT_EQ(std::memcmp(found.data, contiguous.view().data, found.bytes()), 0) << name;
}

TEST(Safetensors, WhatIsWrittenIsRead) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  std::vector<Tensor> owners;
  std::vector<NamedTensor> tensors;
  for (const DType dtype : {DType::boolean, DType::bfloat16, DType::int32, DType::float64,
                            DType::float32, DType::float16, DType::int64}) {
    for (const Shape& shape : {Shape{1}, Shape{3, 5}, Shape{0, 4}, Shape{2, 1, 3, 1, 7}}) {
      owners.push_back(random_tensor(shape, dtype, random));
      tensors.push_back({dtype_name(dtype) + to_string(shape), owners.back()});
    }
  }
  const Folder folder;
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"ünï", "\"코드\"\n"}};
  write_safetensors(folder / "a", tensors, metadata);
  EXPECT_EQ(folder.names(), std::set<std::string>{"a"});

  const SafetensorsFile file(folder / "a");
  EXPECT_EQ(file.path(), folder / "a");
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.entries().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    expect_same(file.view(name), tensor, name);
    expect_same(file.read(name), tensor, name);
  }
}

TEST(Safetensors, StridedTensorsAreWrittenInPieces) {
  std::mt19937_64 random(7);
  // Transposed, and more than one piece of 4 MiB in each way of cutting.
  const Tensor wide = random_tensor({3, 1'500'000}, DType::float32, random);
  const Tensor tall = random_tensor({700, 3001}, DType::float32, random);
  const std::vector<NamedTensor> tensors = {
      {"transposed", tall.view().transpose(0, 1)},
      {"wide rows", wide.view().slice(1, 1, 1'400'000)},
      {"one dimension", wide.view().reshape({2, 2'250'000}).transpose(0, 1).select(1, 1)},
      {"strided", wide.view().reshape({-1, 2}).select(1, 1)},
      {"broadcast", wide.view().slice(0, 0, 1).slice(1, 0, 1).broadcast_to({3, 5})},
  };
  const Folder folder;
  write_safetensors(folder / "a", tensors);
  const SafetensorsFile file(folder / "a");
  for (const auto& [name, tensor] : tensors)
    expect_same(file.view(name), tensor, name);
}

TEST(Safetensors, DataIsAlignedAndInTheOrderOfWidth) {
  const Tensor bytes = Tensor::zeros({3}, DType::boolean), wide = Tensor::zeros({3}, DType::int64);
  const Folder folder;
  write_safetensors(folder / "a", std::vector<NamedTensor>{{"b", bytes}, {"w", wide}});
  const SafetensorsFile file(folder / "a");
  EXPECT_EQ(file.entries()[0].name, "w");
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(file.entries()[0].data.data()) % 64, 0u);
}

TEST(Safetensors, AFileMayHaveNoTensors) {
  const Folder folder;
  write_safetensors(folder / "a", {});
  EXPECT_TRUE(SafetensorsFile(folder / "a").entries().empty());
}

TEST(Safetensors, CopiesShareTheFile) {
  const Folder folder;
  const Tensor tensor = Tensor::from<float>({1.0f, 2.0f}, {2});
  write_safetensors(folder / "a", std::vector<NamedTensor>{{"x", tensor}});
  std::optional<SafetensorsFile> first(folder / "a");
  const SafetensorsFile second = *first;
  first.reset();
  std::filesystem::remove(folder / "a");
  expect_same(second.view("x"), tensor, "x");
}

TEST(Safetensors, UnalignedBytesAreCopied) {
  const Folder folder;
  const float values[2] = {1.5f, -2.0f};
  std::string data = "?";
  data.append(reinterpret_cast<const char*>(values), sizeof values);
  folder.write("a", safetensors_bytes(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
      "x":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
                                      data));
  const SafetensorsFile file(folder / "a");
  expect_error(ErrorCode::unsupported, {"[SafetensorsFile.view]", "'x'", "not aligned"},
               [&] { file.view("x"); });
  expect_error(ErrorCode::unsupported, {"'b'", "U8 must be read"}, [&] { file.view("b"); });
  EXPECT_EQ(file.read("x").as<float>()[1], -2.0f);
  EXPECT_EQ(file.read("b").as<std::int32_t>()[0], '?');
}

TEST(Safetensors, TypesThatAreOnlySizedAreListed) {
  const Folder folder;
  folder.write("a", safetensors_bytes(R"({"x":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]},
      "y":{"dtype":"C64","shape":[1],"data_offsets":[3,11]}})",
                                      std::string(11, '\0')));
  const SafetensorsFile file(folder / "a");
  EXPECT_EQ(file.entry("x").shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(file.entry("x").nearest, std::nullopt);
  expect_error(ErrorCode::unsupported, {"'x'", "F4 cannot be read"}, [&] { file.read("x"); });
}

TEST(Safetensors, ReadRefusesWhatDoesNotFit) {
  const Folder folder;
  const Tensor tensor = Tensor::zeros({2, 3}, DType::float32);
  write_safetensors(folder / "a", std::vector<NamedTensor>{{"x", tensor}});
  const SafetensorsFile file(folder / "a");
  expect_error(ErrorCode::invalid_argument, {"has no tensor 'y'"}, [&] { file.read("y"); });
  expect_error(ErrorCode::invalid_argument, {"'x' has shape [2,3]", "[3,2]"}, [&] {
    file.read_into("x", Tensor::empty({3, 2}, DType::float32));
  });
  const Tensor wide = Tensor::empty({2, 6}, DType::float32);
  expect_error(ErrorCode::invalid_argument, {"must be contiguous"},
               [&] { file.read_into("x", wide.view().slice(1, 0, 3)); });
  folder.write("b", safetensors_bytes(
                        R"({"x":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[0,1]}})", "x"));
  expect_error(ErrorCode::invalid_argument, {"at most 5 dimensions", "[1,1,1,1,1,1]"},
               [&] { SafetensorsFile(folder / "b").read("x"); });
}

TEST(Safetensors, WriteRefusesBadTensorsAndKeepsTheFile) {
  const Folder folder;
  folder.write("a", "old");
  const Tensor x = Tensor::zeros({1}, DType::float32);
  const auto refused = [&](std::vector<NamedTensor> tensors, std::string piece) {
    expect_error(ErrorCode::invalid_argument, {"[write_safetensors]", std::move(piece)},
                 [&] { write_safetensors(folder / "a", tensors); });
    EXPECT_EQ(folder.read("a"), "old");
    EXPECT_EQ(folder.names(), std::set<std::string>{"a"});
  };
  refused({{"x", x}, {"x", x}}, "two tensors 'x'");
  refused({{"", x}}, "no name");
  refused({{"__metadata__", x}}, "no name");
  refused({{"x", {}}}, "must be a tensor");
  refused({{"\xff", x}}, "UTF-8");
}

TEST(SafetensorsDeathTest, AFullDiskKeepsTheFile) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Folder folder;
  folder.write("a", "old");
  EXPECT_EXIT(test::exit_after([&] {
                test::limit_file_size(100'000);
                const Tensor x = Tensor::zeros({30'000}, DType::float32);
                write_safetensors(folder / "a", std::vector<NamedTensor>{{"x", x}});
              }),
              test::exited_with(ErrorCode::io),
              (test::Says{"cannot write", "/a: ", "nothing was overwritten"}));
  EXPECT_EQ(folder.read("a"), "old");
  EXPECT_EQ(folder.names(), std::set<std::string>{"a"});
}

}  // namespace
}  // namespace flashmha::io
