// Files that are cut off, lie, or were made to do harm: each is refused with the reason.
#include <nlohmann/json.hpp>
#include <random>

#include "flashmha/safetensors.h"
#include "tests/core/expect_error.h"
#include "tests/io/folder.h"
#include "tests/io/safetensors_bytes.h"

namespace flashmha::io {
namespace {

using test::expect_error;
using test::Folder;
using test::safetensors_bytes;

void expect_refused(const std::string& bytes, std::initializer_list<std::string> pieces,
                    ErrorCode code = ErrorCode::invalid_argument) {
  const Folder folder;
  const std::string path = folder.write("bad.safetensors", bytes);
  expect_error(code, pieces, [&] { SafetensorsFile file(path); });
  expect_error(code, {"[SafetensorsFile] " + path}, [&] { SafetensorsFile file(path); });
}

// One tensor x of the given fields, and 8 bytes of data.
void expect_entry_refused(const std::string& fields, std::initializer_list<std::string> pieces,
                          ErrorCode code = ErrorCode::invalid_argument) {
  SCOPED_TRACE(fields);
  expect_refused(safetensors_bytes("{\"x\":{" + fields + "}}", "01234567"), pieces, code);
}

const std::string kGood = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

TEST(BadSafetensors, TheGoodOneIsAccepted) {
  const Folder folder;
  EXPECT_NO_THROW(SafetensorsFile(folder.write("a", safetensors_bytes(kGood, "01234567"))));
  EXPECT_NO_THROW(SafetensorsFile(folder.write("a", safetensors_bytes(kGood + "   ", "01234567"))));
}

TEST(BadSafetensors, CutOffAnywhere) {
  const std::string good = safetensors_bytes(kGood, "01234567");
  const Folder folder;
  for (std::size_t length = 0; length < good.size(); ++length) {
    const std::string path = folder.write("a", good.substr(0, length));
    expect_error(ErrorCode::invalid_argument, {"[SafetensorsFile]"},
                 [&] { SafetensorsFile{path}; });
  }
  expect_refused("", {"too short", "0 bytes"});
  expect_refused(good.substr(0, 40), {"cut off: the header has 54 bytes, the file 32"});
  expect_refused(good.substr(0, good.size() - 1), {"'x' ends at 8, the file has 7 bytes of data"});
}

TEST(BadSafetensors, HeadersThatLieAboutTheirLength) {
  for (const std::uint64_t length : {100'000'001ull, 1ull << 40, 1ull << 63, ~0ull, ~0ull - 7}) {
    expect_refused(safetensors_bytes(kGood, "01234567", length),
                   {"at most 100000000 bytes", std::to_string(length)});
  }
  expect_refused(safetensors_bytes(kGood, "01234567", 99'000'000), {"cut off"});
  expect_refused(safetensors_bytes(kGood, "01234567", 0), {"must begin with '{'"});
  expect_refused(safetensors_bytes(kGood, "01234567", 20), {"not JSON"});
  expect_refused(safetensors_bytes(kGood, "01234567", kGood.size() + 2), {"not JSON"});
}

TEST(BadSafetensors, HeadersThatAreNotWhatTheyShouldBe) {
  expect_refused(safetensors_bytes("[]", ""), {"must begin with '{'"});
  expect_refused(safetensors_bytes(" " + kGood, "01234567"), {"must begin with '{'"});
  expect_refused(safetensors_bytes("{\"\xff\":1}", ""), {"not JSON", "UTF-8"});
  expect_refused(safetensors_bytes("{\"x\":1}", ""), {"x must be an object"});
  expect_refused(safetensors_bytes("{\"x\":null}", ""), {"x is missing"});
  expect_refused(safetensors_bytes("{" + kGood.substr(1, kGood.size() - 2) + "," + kGood.substr(1),
                                   "01234567"),
                 {"the key 'x' twice"});
  expect_refused(safetensors_bytes(R"({"__metadata__":{"a":1}})", ""), {"__metadata__", "string"});
  expect_refused(safetensors_bytes(R"({"__metadata__":"a"})", ""), {"must be an object"});
  std::string deep = "{\"x\":" + std::string(1'000'000, '[');
  expect_refused(safetensors_bytes(deep, ""), {"nested more than 3 levels deep"});
}

TEST(BadSafetensors, HeadersThatWouldFillTheMemory) {
  std::string numbers = R"({"x":{"dtype":"F32","data_offsets":[0,8],"shape":[0)";
  for (int i = 0; i < 5'000'000; ++i)
    numbers += ",0";
  expect_refused(safetensors_bytes(numbers + "]}}", "01234567"), {"more than 4000000 values"});
}

TEST(BadSafetensors, FieldsOfOtherTypes) {
  expect_entry_refused(R"("shape":[2],"data_offsets":[0,8])", {"x.dtype is missing"});
  expect_entry_refused(R"("dtype":"F32","data_offsets":[0,8])", {"x.shape is missing"});
  expect_entry_refused(R"("dtype":"F32","shape":[2])", {"x.data_offsets is missing"});
  expect_entry_refused(R"("dtype":5,"shape":[2],"data_offsets":[0,8])", {"x.dtype", "string"});
  expect_entry_refused(R"("dtype":"F31","shape":[2],"data_offsets":[0,8])",
                       {"x.dtype", "not a known element type", "'F31'"}, ErrorCode::unsupported);
  expect_entry_refused(R"("dtype":"F32","shape":2,"data_offsets":[0,8])", {"x.shape", "an array"});
  expect_entry_refused(R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])", {"x.shape"});
  expect_entry_refused(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])", {"x.shape"});
  expect_entry_refused(R"("dtype":"F32","shape":[2],"data_offsets":[0,8.0])", {"x.data_offsets"});
  expect_entry_refused(R"("dtype":"F32","shape":[2],"data_offsets":[8])", {"two numbers"});
  expect_entry_refused(R"("dtype":"F32","shape":[2],"data_offsets":[0,8,8])", {"two numbers"});
  expect_entry_refused(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"strides":[9])",
                       {"x.strides is no field of the format"});
}

TEST(BadSafetensors, ShapesAndOffsetsThatLie) {
  const auto shape = [](const std::string& sizes) {
    return "\"dtype\":\"F32\",\"shape\":[" + sizes + "],\"data_offsets\":[0,8]";
  };
  expect_entry_refused(shape("3"), {"'x' has 8 bytes, but F32 [3] needs 12"});
  expect_entry_refused(shape("0"), {"needs 0"});
  expect_entry_refused(shape(""), {"F32 [] needs 4"});
  expect_entry_refused(shape("-2"), {"x.shape must have integers from 0"});
  expect_entry_refused(shape("-1,-2"), {"x.shape must have integers from 0"});
  expect_entry_refused(shape("18446744073709551615"), {"x.shape must have integers"});
  expect_entry_refused(shape("36893488147419103232"), {"x.shape must have integers"});
  expect_entry_refused(shape("4294967296,4294967296,2"), {"x.shape must have less than 2^63 bits"});
  // 2^64 bytes and 8 more: wraps to 8.
  expect_entry_refused(shape("2,4611686018427387905"), {"less than 2^63 bits"});
  expect_entry_refused(shape("0,9223372036854775807,9223372036854775807"), {"needs 0"});
  expect_entry_refused(R"("dtype":"F4","shape":[15],"data_offsets":[0,8])", {"whole bytes"});

  const auto offsets = [](const std::string& numbers) {
    return "\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[" + numbers + "]";
  };
  expect_entry_refused(offsets("8,0"), {"must not end before they begin"});
  expect_entry_refused(offsets("-8,0"), {"x.data_offsets must have integers"});
  expect_entry_refused(offsets("0,16"), {"cut off: 'x' ends at 16"});
  expect_entry_refused(offsets("8,16"), {"cut off"});
  expect_entry_refused(offsets("9223372036854775800,9223372036854775807"), {"cut off"});
  expect_entry_refused(offsets("18446744073709551608,18446744073709551615"),
                       {"must have integers"});
}

// Tensors of bytes at the given offsets in 8 bytes of data.
std::string tensors_at(const std::vector<std::pair<int, int>>& ranges) {
  nlohmann::json header = nlohmann::json::object();
  for (const auto& [begin, end] : ranges) {
    header["t" + std::to_string(header.size())] = {
        {"dtype", "U8"}, {"shape", {end - begin}}, {"data_offsets", {begin, end}}};
  }
  return safetensors_bytes(header.dump(), "01234567");
}

TEST(BadSafetensors, OverlapsAndGaps) {
  const Folder folder;
  EXPECT_NO_THROW(SafetensorsFile(folder.write("a", tensors_at({{4, 8}, {4, 4}, {0, 4}, {0, 0}}))));
  expect_refused(tensors_at({{0, 5}, {4, 8}}), {"'t1' begins at byte 4", "inside of another"});
  expect_refused(tensors_at({{0, 8}, {0, 8}}), {"begins at byte 0", "inside of another"});
  expect_refused(tensors_at({{0, 8}, {2, 4}}), {"'t1' begins at byte 2", "inside of another"});
  expect_refused(tensors_at({{0, 8}, {4, 4}}), {"inside of another"});
  expect_refused(tensors_at({{0, 3}, {4, 8}}),
                 {"'t1' begins at byte 4", "after a gap from byte 3"});
  expect_refused(tensors_at({{1, 8}}), {"begins at byte 1", "after a gap"});
  expect_refused(tensors_at({{0, 6}}), {"the last 2 bytes belong to no tensor"});
  expect_refused(tensors_at({}), {"the last 8 bytes belong to no tensor"});
}

TEST(BadSafetensors, BooleansThatAreNeither) {
  const Folder folder;
  const std::string header = R"({"x":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})";
  const SafetensorsFile file(
      folder.write("a", safetensors_bytes(header, "\x01\x02") + std::string(1, '\0')));
  expect_error(ErrorCode::invalid_argument, {"'x'", "must be 0 or 1"}, [&] { file.view("x"); });
  const Tensor read = file.read("x");  // any byte but 0 is true
  EXPECT_EQ(read.as<bool>()[0] + read.as<bool>()[1] + read.as<bool>()[2], 2);
}

// Whatever bytes of a good file change: an Error, or a file all of whose tensors can be read.
TEST(BadSafetensors, RandomDamageIsNoCrash) {
  const std::uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::string good = tensors_at({{0, 3}, {3, 8}});
  const Folder folder;
  int num_refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = good;
    for (std::uint64_t changes = 1 + random() % 3; changes > 0; --changes)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    const std::string path = folder.write("a", bytes);
    try {
      const SafetensorsFile file(path);
      for (const SafetensorsEntry& entry : file.entries()) {
        if (!entry.nearest) continue;
        EXPECT_EQ(file.read(entry.name).numel(), entry.numel());
      }
    } catch (const Error&) {
      ++num_refused;
    }
  }
  EXPECT_GT(num_refused, 1000);
}

}  // namespace
}  // namespace flashmha::io
