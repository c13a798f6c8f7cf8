// safetensors files: tensors by name (https://huggingface.co/docs/safetensors, "Format").
//
//   const io::SafetensorsFile file("model.safetensors");
//   const Tensor weight = file.read("model.norm.weight", DType::float32);
//   io::write_safetensors("copy.safetensors", {{{"model.norm.weight", weight}}});
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashmha/tensor.h"

namespace flashmha::io {

class MappedFile;

// A tensor as the file describes it.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;                // the format's word: "F32", "BF16", "F8_E4M3", "U8", ...
  std::vector<std::int64_t> shape;  // of any rank; empty: a single number
  std::span<const std::byte> data;  // in the mapped file: row-major, little-endian
  std::optional<DType> nearest;     // what read() gives by itself; none: it refuses

  std::int64_t numel() const;
};

// A file mapped into memory: opening reads the header only. The whole header is checked: sizes,
// offsets, overlaps, gaps, JSON, duplicates; every later access is inside of the file. Copies share
// the mapping, and it lives as long as one of them.
//
// Types: BOOL, U8..U64, I8..I64, F8_E4M3, F8_E5M2, F8_E8M0, F16, BF16, F32, F64. Tensors of F4,
// F6_E2M3, F6_E3M2 and C64 are listed, and refused (unsupported) when they are read.
class SafetensorsFile {
 public:
  // Throws io if the file cannot be opened, invalid_argument if it is not well-formed, unsupported
  // for types that are not listed above.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const;
  // In the order of the bytes.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  bool contains(std::string_view name) const { return index_.contains(name); }
  // Throws invalid_argument if there is none of that name; so do the functions below.
  const SafetensorsEntry& entry(std::string_view name) const;

  // A copy in the given dtype; without one in the nearest dtype that holds every value: float32 for
  // 8-bit floating types, int32 or int64 for integers. Floating types convert to floating types,
  // rounding to nearest; integers and BOOL to int32, int64 and boolean (not zero). Throws
  // invalid_argument for other pairs, for integers that do not fit, and for more than
  // Shape::kMaxRank dimensions. A single number has shape [1].
  Tensor read(std::string_view name, std::optional<DType> dtype = {}) const;
  // The same into a contiguous tensor, on any device, whose shape must be the entry's.
  void read_into(std::string_view name, const TensorView& destination) const;

  // The bytes where they lie, for reading only. Throws unsupported for types that are no DType and
  // for bytes that are not aligned to their type, which the format permits: read() copies those.
  TensorView view(std::string_view name) const;

 private:
  std::shared_ptr<const MappedFile> file_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::size_t, std::less<>> index_;  // of entries_
  std::map<std::string, std::string> metadata_;
};

struct NamedTensor {
  std::string name;
  TensorView tensor;  // on the CPU; strides free
};

// Writes a file that appears, or replaces another, in one step when it is complete and on the disk:
// on any error what was there stays. Tensors are written from where they lie; each starts at a
// multiple of its element size. Throws io, and invalid_argument for names that are not UTF-8, empty
// or twice the same.
void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace flashmha::io
