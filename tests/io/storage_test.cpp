// Every element type of the format against what PyTorch reads (tests/truth/make_types.py), and
// large random tensors in every floating type against the constructors of core.
#include "io/storage.h"

#include <bit>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "flashmha/safetensors.h"
#include "tests/core/expect_error.h"

namespace flashmha::io {
namespace {

using test::expect_error;

const SafetensorsFile& truth() {
  static const SafetensorsFile file(std::string(FLASHMHA_TESTS_DIR) + "/truth/types.safetensors");
  return file;
}

template <class T>
void expect_equal(const Tensor& found, const Tensor& expected, const std::string& name) {
  ASSERT_EQ(found.shape(), expected.shape()) << name;
  for (std::int64_t i = 0; i < found.numel(); ++i) {
    const T x = found.as<T>()[i], y = expected.as<T>()[i];
    const bool both_nan = x != x && y != y;
    ASSERT_TRUE(both_nan || (x == y && std::signbit(static_cast<double>(x)) ==
                                           std::signbit(static_cast<double>(y))))
        << name << " element " << i << ": found " << x << ", PyTorch has " << y;
  }
}

TEST(Storage, EveryTypeHasTheValuesOfPyTorch) {
  const nlohmann::json about = nlohmann::json::parse(truth().metadata().at("truth"));
  ASSERT_EQ(about.at("names").size(), 18u);
  for (const std::string name : about.at("names")) {
    const Tensor found = truth().read(name);
    const Tensor expected = truth().read(name + ".values");
    if (is_floating(found.dtype())) {
      expect_equal<double>(cast(found, DType::float64), expected, name);
      expect_equal<double>(truth().read(name, DType::float64), expected, name);
    } else if (found.dtype() == DType::boolean) {
      expect_equal<std::int64_t>(truth().read(name, DType::int64), expected, name);
    } else {
      expect_equal<std::int64_t>(cast(found, DType::int64), expected, name);
      expect_equal<std::int64_t>(truth().read(name, DType::int64), expected, name);
    }
  }
}

TEST(Storage, TheNearestTypeIsSmall) {
  EXPECT_EQ(truth().read("F8_E4M3").dtype(), DType::float32);
  EXPECT_EQ(truth().read("F16").dtype(), DType::float16);
  EXPECT_EQ(truth().read("U16").dtype(), DType::int32);
  EXPECT_EQ(truth().read("U32").dtype(), DType::int64);
  EXPECT_EQ(truth().read("BOOL").dtype(), DType::boolean);
  EXPECT_EQ(truth().read("scalar").shape(), Shape{1});
  EXPECT_EQ(truth().read("empty").shape(), (Shape{3, 0, 2}));
}

TEST(Storage, IntegersMustFit) {
  expect_error(ErrorCode::invalid_argument,
               {"'I64'", "4611686018427387904", "does not fit", "int32"},
               [] { truth().read("I64", DType::int32); });
  expect_error(ErrorCode::invalid_argument, {"'U32'", "4294967295", "int32"},
               [] { truth().read("U32", DType::int32); });
  const Tensor flags = truth().read("I64", DType::boolean);
  EXPECT_FALSE(flags.as<bool>()[0]);
  EXPECT_TRUE(flags.as<bool>()[3]);
}

TEST(Storage, FloatingAndIntegerDoNotMix) {
  expect_error(ErrorCode::invalid_argument, {"'F32'", "cannot be read as int32"},
               [] { truth().read("F32", DType::int32); });
  expect_error(ErrorCode::invalid_argument, {"'I32'", "cannot be read as float32"},
               [] { truth().read("I32", DType::float32); });
}

// Random bits: every kind of number, many infinities and NaNs; more than one block of them.
template <class Element>
void check_pair(DType to, std::mt19937_64& random) {
  const std::int64_t count = 600'001;
  std::vector<Element> values(static_cast<std::size_t>(count) + 1);
  auto* const bytes = reinterpret_cast<std::byte*>(values.data());
  for (std::size_t i = 0; i < values.size() * sizeof(Element); ++i)
    bytes[i] = static_cast<std::byte>(random());
  const Tensor source =
      Tensor::from(std::span<const Element>(values.data(), values.size() - 1), {count});
  const Tensor expected = cast(source, to);
  const Tensor found = Tensor::empty({count}, to);
  // From an odd address, as a file may have it.
  std::vector<std::byte> shifted(source.view().bytes() + 1);
  std::memcpy(shifted.data() + 1, source.view().data, source.view().bytes());
  convert(std::span(shifted).subspan(1), storage_type(dtype_of<Element>), found, "test");
  expect_equal<double>(cast(found, DType::float64), cast(expected, DType::float64),
                       std::string(dtype_name(dtype_of<Element>)) + " to " + dtype_name(to));
}

TEST(Storage, ConvertsAsCoreDoes) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (const DType to : {DType::float32, DType::bfloat16, DType::float16, DType::float64}) {
    check_pair<float>(to, random);
    check_pair<BFloat16>(to, random);
    check_pair<Float16>(to, random);
    check_pair<double>(to, random);
  }
}

}  // namespace
}  // namespace flashmha::io
