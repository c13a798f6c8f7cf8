// Writing: the header, then the tensors from where they lie; strided ones in pieces.
#include "io/safetensors_write.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>
#include <vector>

#include "core/check.h"
#include "core/format.h"
#include "core/located.h"
#include "io/json.h"
#include "io/storage.h"

namespace flashmha::io {
namespace {

constexpr std::size_t kAlignment = 64;                     // of the data in the file
constexpr std::size_t kPieceBytes = std::size_t{4} << 20;  // of a copy of strided elements

void check_tensors(std::span<const NamedTensor> tensors, const std::string& where) {
  std::unordered_set<std::string_view> names;
  for (const auto& [name, tensor] : tensors) {
    check(!name.empty() && name != "__metadata__", "{}: {} is no name of a tensor", where,
          quote(name));
    check(names.insert(name).second, "{}: there are two tensors {}", where, quote(name));
    check(tensor.defined(), "{}: {} must be a tensor; got none", where, quote(name));
  }
}

std::string header_of(std::span<const NamedTensor> tensors,
                      const std::map<std::string, std::string>& metadata,
                      const std::string& where) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::size_t begin = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t end = begin + tensor.bytes();
    header[name] = {{"dtype", storage_type(tensor.dtype).name},
                    {"shape", std::vector<std::int64_t>(tensor.shape.begin(), tensor.shape.end())},
                    {"data_offsets", {begin, end}}};
    begin = end;
  }
  try {
    return header.dump();
  } catch (const Json::exception&) {
    fail(ErrorCode::invalid_argument, "{}: names and metadata must be UTF-8", where);
  }
}

void write_elements(AtomicFile& file, const TensorView& tensor) {
  if (tensor.numel() == 0) return;
  if (tensor.device.type != DeviceType::cpu) return write_elements(file, to_device(tensor, {}));
  if (tensor.is_contiguous()) {
    file.write(std::span(static_cast<const std::byte*>(tensor.data), tensor.bytes()));
    return;
  }
  if (tensor.bytes() <= kPieceBytes) {
    const Tensor piece = clone(tensor);
    write_elements(file, piece);
    return;
  }
  const std::int64_t size = tensor.size(0);
  const std::size_t row_bytes = tensor.bytes() / static_cast<std::size_t>(size);
  const auto step = static_cast<std::int64_t>(std::max<std::size_t>(1, kPieceBytes / row_bytes));
  for (std::int64_t i = 0; i < size; i += step) {
    const TensorView piece = tensor.slice(0, i, std::min(size, i + step));
    write_elements(file, step == 1 ? piece.select(0, 0) : piece);
  }
}

}  // namespace

void write_safetensors(AtomicFile& file, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string where = "[write_safetensors] " + file.path();
  check_tensors(tensors, where);
  // Wide elements first: then every tensor is aligned without gaps, which the format forbids.
  std::vector<NamedTensor> sorted(tensors.begin(), tensors.end());
  std::ranges::stable_sort(sorted, std::greater{}, [](const NamedTensor& entry) {
    return dtype_bytes(entry.tensor.dtype);
  });
  std::string header = header_of(sorted, metadata, where);
  std::uint64_t length = 0;
  header.resize(
      (sizeof length + header.size() + kAlignment - 1) / kAlignment * kAlignment - sizeof length,
      ' ');
  length = header.size();
  std::size_t num_bytes = sizeof length + header.size();
  for (const NamedTensor& entry : sorted)
    num_bytes += entry.tensor.bytes();
  file.reserve(num_bytes);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(header);
  for (const NamedTensor& entry : sorted)
    write_elements(file, entry.tensor);
}

void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  AtomicFile file(path);
  write_safetensors(file, tensors, metadata);
  file.publish();
}

}  // namespace flashmha::io
