// Element types of safetensors, and their conversion to ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "flashmha/tensor.h"

namespace flashmha::io {

enum class Storage : std::uint8_t {
  boolean,
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f16,
  bf16,
  f32,
  f64,
  sized,  // known by its size only: nothing reads it
};

struct StorageType {
  std::string_view name;  // the format's word
  Storage storage;
  int bits;                    // of one element
  DType nearest;               // of ours: holds every value
  std::optional<DType> equal;  // of ours: the same bytes
};

// Null if the format has no such word.
const StorageType* find_storage_type(std::string_view name);
// The type of our tensors in a file.
const StorageType& storage_type(DType dtype);

// Converts the elements of `bytes` (not aligned) to the contiguous destination, which has as many,
// with all threads. `where` begins the messages of errors.
void convert(std::span<const std::byte> bytes, const StorageType& type,
             const TensorView& destination, const std::string& where);

}  // namespace flashmha::io
