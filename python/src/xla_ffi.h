// The part of XLA's interface for foreign functions, version 0, that a function needs which reads
// arrays, writes arrays and takes numbers. XLA promises to keep old versions working
// (https://docs.jax.dev/en/latest/ffi.html); the layout is declared here so that the extension is
// built without JAX. Every structure begins with its size.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashmha::python::xla {

struct Extension {
  std::size_t struct_size;
  std::int32_t type;  // 1: metadata are asked for
  Extension* next;
};

struct Version {
  std::size_t struct_size;
  Extension* extensions;
  std::int32_t major, minor;
};

struct Metadata {
  std::size_t struct_size;
  Version version;
  std::uint32_t traits;
  std::int64_t state_type;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

inline constexpr std::int32_t kMetadata = 1;
inline constexpr std::int32_t kExecute = 3;  // stage of a call

enum class DataType : std::int32_t { pred = 1, s32 = 4, s64 = 5, f16 = 10, f32, f64, bf16 = 16 };

struct Buffer {
  std::size_t struct_size;
  Extension* extensions;
  DataType dtype;
  void* data;
  std::int64_t rank;
  std::int64_t* dims;
};

struct Bytes {
  const char* data;
  std::size_t size;
};

struct Scalar {
  DataType dtype;
  void* value;
};

// Arguments or results.
struct Values {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  std::int32_t* types;  // 1: a Buffer
  void** values;
};

struct Attributes {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  std::int32_t* types;  // 3: a Scalar, 4: Bytes
  Bytes** names;
  void** values;
};

inline constexpr std::int32_t kBuffer = 1;
inline constexpr std::int32_t kScalar = 3;
inline constexpr std::int32_t kString = 4;

struct Error;
struct Context;

enum class ErrorCode : std::int32_t {
  invalid_argument = 3,
  resource_exhausted = 8,
  unimplemented = 12,
  internal = 13,
};

struct CreateError {
  std::size_t struct_size;
  Extension* extensions;
  const char* message;
  ErrorCode code;
};

struct GetStream {
  std::size_t struct_size;
  Extension* extensions;
  Context* context;
  void* stream;  // out
};

struct GetDevice {
  std::size_t struct_size;
  Extension* extensions;
  Context* context;
  std::int32_t ordinal;  // out
};

// XLA's own functions, those that are not used without their types.
struct Api {
  std::size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(CreateError*);
  void (*other1[3])();
  Error* (*get_stream)(GetStream*);
  void (*other2[12])();
  Error* (*get_device)(GetDevice*);  // not in the oldest: struct_size says
};

struct CallFrame {
  std::size_t struct_size;
  Extension* extensions;
  const Api* api;
  Context* context;
  std::int32_t stage;
  Values arguments;
  Values results;
  Attributes attributes;
  void* future;
};

}  // namespace flashmha::python::xla
