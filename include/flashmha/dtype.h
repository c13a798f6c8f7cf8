// Element types of tensors.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace flashmha {

// float64 exists for the specification: only the reference backend computes in it.
enum class DType : std::uint8_t { float32, bfloat16, float16, float64, int32, int64, boolean };

// Bytes of one element.
constexpr std::size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::float64:
    case DType::int64: return 8;
    case DType::float32:
    case DType::int32: return 4;
    case DType::bfloat16:
    case DType::float16: return 2;
    case DType::boolean: return 1;
  }
  return 0;
}

// True for float32, bfloat16, float16 and float64.
constexpr bool is_floating(DType dtype) {
  return dtype == DType::float32 || dtype == DType::bfloat16 || dtype == DType::float16 ||
         dtype == DType::float64;
}

// "float32", "bfloat16", ...
const char* dtype_name(DType dtype);

// Storage of one 16-bit number. Arithmetic happens in float32; conversions to the narrow type round
// to nearest, ties to even, and keep NaN a NaN.
struct BFloat16 {
  std::uint16_t bits = 0;

  BFloat16() = default;
  explicit BFloat16(float value);
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
};

struct Float16 {
  std::uint16_t bits = 0;

  Float16() = default;
  explicit Float16(float value);
  explicit operator float() const;
};

// The DType of a C++ type: dtype_of<float> == DType::float32.
template <class T>
inline constexpr DType dtype_of = T::unsupported_element_type;
template <>
inline constexpr DType dtype_of<float> = DType::float32;
template <>
inline constexpr DType dtype_of<double> = DType::float64;
template <>
inline constexpr DType dtype_of<BFloat16> = DType::bfloat16;
template <>
inline constexpr DType dtype_of<Float16> = DType::float16;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::int32;
template <>
inline constexpr DType dtype_of<std::int64_t> = DType::int64;
template <>
inline constexpr DType dtype_of<bool> = DType::boolean;

}  // namespace flashmha
