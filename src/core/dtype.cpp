#include "flashmha/dtype.h"

#include <bit>

namespace flashmha {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::bfloat16: return "bfloat16";
    case DType::float16: return "float16";
    case DType::float64: return "float64";
    case DType::int32: return "int32";
    case DType::int64: return "int64";
    case DType::boolean: return "boolean";
  }
  return "unknown";
}

BFloat16::BFloat16(float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const bool is_nan = (word & 0x7FFFFFFFu) > 0x7F800000u;
  const std::uint32_t ties_to_even = 0x7FFFu + ((word >> 16) & 1u);
  // A NaN is truncated and made quiet: rounding up could turn it into an infinity.
  bits = static_cast<std::uint16_t>(is_nan ? (word >> 16) | 0x40u : (word + ties_to_even) >> 16);
}

namespace {

// Rounds magnitude / 2^shift to the nearest integer, ties to even.
std::uint32_t round_shift(std::uint32_t magnitude, int shift) {
  if (shift > 31) return 0;
  const std::uint32_t half = (1u << (shift - 1)) - 1u;
  return (magnitude + half + ((magnitude >> shift) & 1u)) >> shift;
}

}  // namespace

Float16::Float16(float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (word >> 16) & 0x8000u;
  const std::uint32_t magnitude = word & 0x7FFFFFFFu;
  constexpr std::uint32_t kInfinity32 = 0x7F800000u;
  constexpr std::uint32_t kSmallestNormal16 = 0x38800000u;  // 2^-14
  constexpr std::uint32_t kOverflow16 = 0x47800000u;        // 2^16: the exponent no longer fits

  std::uint32_t result = 0;
  if (magnitude > kInfinity32) {
    result = 0x7E00u | ((magnitude >> 13) & 0x3FFu);
  } else if (magnitude >= kOverflow16) {
    result = 0x7C00u;
  } else if (magnitude >= kSmallestNormal16) {
    // Moves the exponent bias from 127 to 15; a carry out of the mantissa lands in the exponent.
    result = round_shift(magnitude - (112u << 23), 13);
  } else {
    const int exponent = static_cast<int>(magnitude >> 23);
    const std::uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
    result = exponent == 0 ? 0 : round_shift(mantissa, 126 - exponent);
  }
  bits = static_cast<std::uint16_t>(sign | result);
}

Float16::operator float() const {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1Fu;
  const std::uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t exponent32 = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (exponent32 << 23) | (mantissa << 13));
}

}  // namespace flashmha
