// One pass over the bytes in blocks, each the task of one thread. Conversions have no branches, so
// that the compiler makes vector code of the loops.
#include "io/storage.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/parallel.h"
#include "core/visit.h"

namespace flashmha::io {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the bytes of files are taken as they are");

constexpr std::int64_t kBlock = 1 << 18;  // elements of a task

using enum Storage;
constexpr std::array<StorageType, 20> kTypes = {{
    {"BOOL", boolean, 8, DType::boolean, DType::boolean},
    {"U8", u8, 8, DType::int32, {}},
    {"I8", i8, 8, DType::int32, {}},
    {"U16", u16, 16, DType::int32, {}},
    {"I16", i16, 16, DType::int32, {}},
    {"U32", u32, 32, DType::int64, {}},
    {"I32", i32, 32, DType::int32, DType::int32},
    {"U64", u64, 64, DType::int64, {}},
    {"I64", i64, 64, DType::int64, DType::int64},
    {"F8_E4M3", f8_e4m3, 8, DType::float32, {}},
    {"F8_E5M2", f8_e5m2, 8, DType::float32, {}},
    {"F8_E8M0", f8_e8m0, 8, DType::float32, {}},
    {"F16", f16, 16, DType::float16, DType::float16},
    {"BF16", bf16, 16, DType::bfloat16, DType::bfloat16},
    {"F32", f32, 32, DType::float32, DType::float32},
    {"F64", f64, 64, DType::float64, DType::float64},
    {"F4", sized, 4, DType::float32, {}},
    {"F6_E2M3", sized, 6, DType::float32, {}},
    {"F6_E3M2", sized, 6, DType::float32, {}},
    {"C64", sized, 64, DType::float32, {}},
}};

// ---- widening: exact ---------------------------------------------------------------------------

float widen_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// The exponent moves from bias 15 to 127 by a product, which normalises subnormals as well; an
// infinity or a NaN gets the highest exponent back.
float widen_f16(std::uint16_t bits) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(bits & 0x7FFFu) << 13;
  const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const std::uint32_t special = magnitude >= 0x0F800000u ? 0x7F800000u : 0u;
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  return std::bit_cast<float>(scaled | special | sign);
}

// Micikevicius et al. 2022, "FP8 formats for deep learning": E4M3 has no infinities and one NaN.
float widen_f8_e4m3(std::uint8_t bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  std::uint32_t magnitude = 0x7FC00000u;
  if ((bits & 0x7F) != 0x7F) {
    const float value = exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                                      : std::bit_cast<float>(static_cast<std::uint32_t>(
                                            ((exponent + 120) << 23) | (mantissa << 20)));
    magnitude = std::bit_cast<std::uint32_t>(value);
  }
  return std::bit_cast<float>(magnitude | (static_cast<std::uint32_t>(bits & 0x80) << 24));
}

float widen_f8_e5m2(std::uint8_t bits) {
  return widen_f16(static_cast<std::uint16_t>(bits << 8));
}

// A power of two: the exponent of a float32; 255 is NaN.
float widen_f8_e8m0(std::uint8_t bits) {
  const std::uint32_t word = bits == 255 ? 0x7FC00000u
                             : bits == 0 ? 0x00400000u
                                         : static_cast<std::uint32_t>(bits) << 23;
  return std::bit_cast<float>(word);
}

template <float (*Widen)(std::uint8_t)>
float from_table(std::uint8_t bits) {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values{};
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = Widen(static_cast<std::uint8_t>(i));
    return values;
  }();
  return table[bits];
}

// ---- narrowing: as the constructors of BFloat16 and Float16, which are calls -------------------

std::uint16_t narrow_bf16(float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (word >> 16) | 0x40u;
  const bool is_nan = (word & 0x7FFFFFFFu) > 0x7F800000u;
  return static_cast<std::uint16_t>(is_nan ? quiet_nan : rounded);
}

// Below the normal numbers adding 0.5, whose last bit counts 2^-24 as theirs does, rounds.
std::uint16_t narrow_f16(float value) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = word & 0x7FFFFFFFu;
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(shifted) - 0x3F000000u;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  const std::uint32_t nan = 0x7E00u | ((magnitude >> 13) & 0x3FFu);
  std::uint32_t result = magnitude < 0x38800000u ? subnormal : normal;  // 2^-14
  result = magnitude >= 0x47800000u ? 0x7C00u : result;                 // 2^16
  result = magnitude > 0x7F800000u ? nan : result;
  return static_cast<std::uint16_t>(((word >> 16) & 0x8000u) | result);
}

template <class To>
To narrow(float value) {
  if constexpr (std::is_same_v<To, float>) {
    return value;
  } else {
    To result;
    result.bits = std::is_same_v<To, BFloat16> ? narrow_bf16(value) : narrow_f16(value);
    return result;
  }
}

// ---- one block ---------------------------------------------------------------------------------

template <class Bits>
Bits load(const std::byte* bytes, std::int64_t index) {
  Bits value;
  std::memcpy(&value, bytes + index * static_cast<std::int64_t>(sizeof value), sizeof value);
  return value;
}

// Elements [begin, end) of a block's loop.
struct Range {
  std::int64_t begin;
  std::int64_t end;
};

template <class Bits, class Widen, class To>
void convert_floats(const std::byte* bytes, Widen widen, To* to, Range range) {
  for (std::int64_t i = range.begin; i < range.end; ++i) {
    if constexpr (std::is_same_v<To, double>) {
      to[i] = static_cast<double>(widen(load<Bits>(bytes, i)));
    } else {
      to[i] = narrow<To>(static_cast<float>(widen(load<Bits>(bytes, i))));
    }
  }
}

template <class Bits, class To>
void convert_integers(const std::byte* bytes, To* to, Range range, const std::string& where) {
  for (std::int64_t i = range.begin; i < range.end; ++i) {
    const Bits value = load<Bits>(bytes, i);
    if constexpr (std::is_same_v<To, bool>) {
      to[i] = value != 0;
    } else {
      if (!std::in_range<To>(value)) {
        fail(ErrorCode::invalid_argument, "{}: {} does not fit into {}", where, value,
             dtype_name(dtype_of<To>));
      }
      to[i] = static_cast<To>(value);
    }
  }
}

template <class To>
void convert_floats(const std::byte* bytes, Storage storage, To* to, Range range) {
  const auto run = [&]<class Bits>(Bits, auto widen) {
    convert_floats<Bits>(bytes, widen, to, range);
  };
  switch (storage) {
    case f8_e4m3: return run(std::uint8_t{}, from_table<widen_f8_e4m3>);
    case f8_e5m2: return run(std::uint8_t{}, from_table<widen_f8_e5m2>);
    case f8_e8m0: return run(std::uint8_t{}, from_table<widen_f8_e8m0>);
    case f16: return run(std::uint16_t{}, [](auto bits) { return widen_f16(bits); });
    case bf16: return run(std::uint16_t{}, [](auto bits) { return widen_bf16(bits); });
    case f32: return run(float{}, [](float value) { return value; });
    default: return run(double{}, [](double value) { return value; });
  }
}

template <class To>
void convert_integers(const std::byte* bytes, Storage storage, To* to, Range range,
                      const std::string& where) {
  const auto run = [&]<class Bits>(Bits) { convert_integers<Bits>(bytes, to, range, where); };
  switch (storage) {
    case i8: return run(std::int8_t{});
    case u16: return run(std::uint16_t{});
    case i16: return run(std::int16_t{});
    case u32: return run(std::uint32_t{});
    case i32: return run(std::int32_t{});
    case u64: return run(std::uint64_t{});
    case i64: return run(std::int64_t{});
    default: {  // u8; any byte but 0 is true
      if (storage == u8) return run(std::uint8_t{});
      for (std::int64_t i = range.begin; i < range.end; ++i)
        to[i] = static_cast<To>(bytes[i] != std::byte{0});
    }
  }
}

}  // namespace

const StorageType* find_storage_type(std::string_view name) {
  const auto* const found = std::ranges::find(kTypes, name, &StorageType::name);
  return found == kTypes.end() ? nullptr : found;
}

const StorageType& storage_type(DType dtype) {
  return *std::ranges::find(kTypes, std::optional(dtype), &StorageType::equal);
}

void convert(std::span<const std::byte> bytes, const StorageType& type,
             const TensorView& destination, const std::string& where) {
  if (type.storage == sized) {
    fail(ErrorCode::unsupported, "{}: elements of type {} cannot be read", where, type.name);
  }
  const bool floating = is_floating(type.nearest);
  check(floating == is_floating(destination.dtype), "{}: {} cannot be read as {}", where, type.name,
        dtype_name(destination.dtype));
  const std::int64_t numel = destination.numel();
  const bool same_bytes = type.equal == destination.dtype && type.storage != boolean;
  const std::int64_t num_blocks = (numel + kBlock - 1) / kBlock;
  parallel_for(num_blocks, num_threads(), [&](std::int64_t block, int) {
    const Range range{block * kBlock, std::min(numel, (block + 1) * kBlock)};
    if (same_bytes) {
      const std::size_t begin =
          static_cast<std::size_t>(range.begin) * dtype_bytes(destination.dtype);
      const std::size_t end = static_cast<std::size_t>(range.end) * dtype_bytes(destination.dtype);
      std::memcpy(static_cast<std::byte*>(destination.data) + begin, bytes.data() + begin,
                  end - begin);
      return;
    }
    visit_dtype(destination.dtype, [&]<class To>(To) {
      To* const to = destination.as<To>();
      if constexpr (is_floating(dtype_of<To>)) {
        convert_floats(bytes.data(), type.storage, to, range);
      } else {
        convert_integers(bytes.data(), type.storage, to, range, where);
      }
    });
  });
}

}  // namespace flashmha::io
