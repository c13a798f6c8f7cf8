// Reading: the header is checked once and completely; nothing after it is trusted.
//
//   bytes 0..7    N, the length of the header, little-endian
//   bytes 8..8+N  {"name": {"dtype": "F32", "shape": [2,3], "data_offsets": [begin, end]}, ...}
//   the rest      the data: offsets count from here; no gap, no overlap, no byte that nobody has
#include "flashmha/safetensors.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/format.h"
#include "io/file.h"
#include "io/json.h"
#include "io/storage.h"

namespace flashmha::io {
namespace {

// The reference implementation has the same limit.
constexpr std::size_t kMostHeaderBytes = 100'000'000;
constexpr std::size_t kLengthBytes = 8;

// The JSON text, and the data behind it.
struct Parts {
  std::string_view header;
  std::span<const std::byte> data;
};

Parts split(std::span<const std::byte> bytes, const std::string& where) {
  check(bytes.size() >= kLengthBytes, "{}: too short for safetensors: {} bytes", where,
        bytes.size());
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  check(length <= kMostHeaderBytes, "{}: a header has at most {} bytes; this one says {}", where,
        kMostHeaderBytes, length);
  const std::span<const std::byte> rest = bytes.subspan(kLengthBytes);
  check(length <= rest.size(), "{}: cut off: the header has {} bytes, the file {} after its length",
        where, length, rest.size());
  const std::string_view header(reinterpret_cast<const char*>(rest.data()), length);
  check(header.starts_with('{'), "{}: the header must begin with '{{'", where);
  return {header, rest.subspan(length)};
}

std::uint64_t unsigned_number(const JsonObject& entry, const std::string& key, const Json& value) {
  if (!value.is_number_unsigned()) entry.refuse(key, "must have integers from 0 to 2^63 - 1");
  const auto number = value.get<std::uint64_t>();
  if (number > INT64_MAX) entry.refuse(key, "must have integers from 0 to 2^63 - 1");
  return number;
}

// Bytes of a tensor of that shape.
std::uint64_t expected_bytes(const JsonObject& entry, const std::vector<std::int64_t>& shape,
                             const StorageType& type) {
  std::int64_t bits = type.bits;
  const bool empty = std::ranges::find(shape, 0) != shape.end();
  for (const std::int64_t size : shape) {
    if (!empty && __builtin_mul_overflow(bits, size, &bits)) {
      entry.refuse("shape", "must have less than 2^63 bits");
    }
  }
  if (empty) return 0;
  if (bits % 8 != 0) entry.refuse("shape", "must fill whole bytes");
  return static_cast<std::uint64_t>(bits) / 8;
}

SafetensorsEntry parse_entry(const std::string& name, const JsonObject& entry,
                             std::span<const std::byte> data) {
  SafetensorsEntry result{
      .name = name, .dtype = entry.text("dtype"), .shape = {}, .data = {}, .nearest = {}};
  for (const auto& [key, value] : entry.value().items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      entry.refuse(key, "is no field of the format");
    }
  }
  const StorageType* const type = find_storage_type(result.dtype);
  if (!type) {
    fail(ErrorCode::unsupported, "{}: {} is not a known element type: {}", entry.where(),
         entry.field("dtype"), quote(result.dtype));
  }
  for (const Json& size : entry.array("shape")) {
    result.shape.push_back(static_cast<std::int64_t>(unsigned_number(entry, "shape", size)));
  }
  const Json& offsets = entry.array("data_offsets");
  if (offsets.size() != 2) entry.refuse("data_offsets", "must have two numbers");
  const std::uint64_t begin = unsigned_number(entry, "data_offsets", offsets[0]);
  const std::uint64_t end = unsigned_number(entry, "data_offsets", offsets[1]);
  if (begin > end) entry.refuse("data_offsets", "must not end before they begin");
  check(end <= data.size(), "{}: cut off: {} ends at {}, the file has {} bytes of data",
        entry.where(), quote(name), end, data.size());
  const std::uint64_t expected = expected_bytes(entry, result.shape, *type);
  check(end - begin == expected, "{}: {} has {} bytes, but {} [{}] needs {}", entry.where(),
        quote(name), end - begin, result.dtype, fmt::join(result.shape, ","), expected);
  result.data = data.subspan(begin, end - begin);
  if (type->storage != Storage::sized) result.nearest = type->nearest;
  return result;
}

// Every byte of the data belongs to exactly one tensor.
void check_layout(std::vector<SafetensorsEntry>& entries, std::span<const std::byte> data,
                  const std::string& where) {
  std::ranges::stable_sort(entries, {}, [](const SafetensorsEntry& entry) {
    return std::pair(entry.data.data(), entry.data.size());
  });
  const std::byte* end = data.data();
  for (const SafetensorsEntry& entry : entries) {
    check(entry.data.data() == end, "{}: {} begins at byte {} of the data, {} byte {}", where,
          quote(entry.name), entry.data.data() - data.data(),
          entry.data.data() < end ? "inside of another tensor that ends at" : "after a gap from",
          end - data.data());
    end += entry.data.size();
  }
  check(end == data.data() + data.size(), "{}: the last {} bytes belong to no tensor", where,
        data.data() + data.size() - end);
}

std::map<std::string, std::string> parse_metadata(const JsonObject& object) {
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : object.value().items())
    metadata[key] = object.text(key);
  return metadata;
}

const StorageType& type_of(const SafetensorsEntry& entry) {
  return *find_storage_type(entry.dtype);  // known since the file was opened
}

Shape shape_of(const SafetensorsEntry& entry, const std::string& where) {
  check(entry.shape.size() <= Shape::kMaxRank, "{}: at most {} dimensions are supported; got [{}]",
        where, Shape::kMaxRank, fmt::join(entry.shape, ","));
  return entry.shape.empty() ? Shape{1} : Shape(std::span(entry.shape));
}

}  // namespace

std::int64_t SafetensorsEntry::numel() const {
  std::int64_t count = 1;
  for (const std::int64_t size : shape)
    count = size == 0 ? 0 : count * size;
  return count;
}

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(std::make_shared<const MappedFile>(path)) {
  const std::string where = "[SafetensorsFile] " + path;
  const Parts parts = split(file_->bytes(), where);
  const Json header =
      parse_json(parts.header, where, {.max_bytes = kMostHeaderBytes, .max_depth = 3});
  const JsonObject root(header, where);
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      metadata_ = parse_metadata(root.object(name));
    } else {
      entries_.push_back(parse_entry(name, root.object(name), parts.data));
    }
  }
  check_layout(entries_, parts.data, where);
  for (std::size_t i = 0; i < entries_.size(); ++i)
    index_[entries_[i].name] = i;
}

const std::string& SafetensorsFile::path() const {
  return file_->path();
}

const SafetensorsEntry& SafetensorsFile::entry(std::string_view name) const {
  const auto found = index_.find(name);
  check(found != index_.end(), "[SafetensorsFile] {} has no tensor {}", path(), quote(name));
  return entries_[found->second];
}

Tensor SafetensorsFile::read(std::string_view name, std::optional<DType> dtype) const {
  const SafetensorsEntry& found = entry(name);
  const std::string where = "[SafetensorsFile.read] " + path() + ": " + quote(name);
  Tensor result = Tensor::empty(shape_of(found, where), dtype.value_or(type_of(found).nearest));
  convert(found.data, type_of(found), result, where);
  return result;
}

void SafetensorsFile::read_into(std::string_view name, const TensorView& destination) const {
  const SafetensorsEntry& found = entry(name);
  const std::string where = "[SafetensorsFile.read_into] " + path() + ": " + quote(name);
  check(destination.shape == shape_of(found, where), "{} has shape [{}]; got {}", where,
        fmt::join(found.shape, ","), destination);
  check(destination.is_contiguous(), "{}: the destination must be contiguous; got {}", where,
        destination);
  if (destination.device.type == DeviceType::cpu) {
    return convert(found.data, type_of(found), destination, where);
  }
  const Tensor host = Tensor::empty(destination.shape, destination.dtype);
  convert(found.data, type_of(found), host, where);
  copy(host, destination);
}

TensorView SafetensorsFile::view(std::string_view name) const {
  const SafetensorsEntry& found = entry(name);
  const std::string where = "[SafetensorsFile.view] " + path() + ": " + quote(name);
  const StorageType& type = type_of(found);
  if (!type.equal) {
    fail(ErrorCode::unsupported, "{}: elements of type {} must be read", where, type.name);
  }
  const auto address = reinterpret_cast<std::uintptr_t>(found.data.data());
  if (address % dtype_bytes(*type.equal) != 0) {
    fail(ErrorCode::unsupported, "{}: not aligned; must be read", where);
  }
  const auto is_boolean = [](std::byte byte) { return byte <= std::byte{1}; };
  check(type.storage != Storage::boolean || std::ranges::all_of(found.data, is_boolean),
        "{}: the bytes of a BOOL must be 0 or 1", where);
  const Shape shape = shape_of(found, where);
  return {
      const_cast<std::byte*>(found.data.data()), *type.equal, {}, shape, contiguous_strides(shape)};
}

}  // namespace flashmha::io
