// The part of DLPack 1.3 that PyTorch (from 2.10) and others put on their array types as a capsule
// `__dlpack_c_exchange_api__`: an array is looked at without Python code, without ownership, and
// the queue that the array's library works on is known
// (https://dmlc.github.io/dlpack/latest/python_spec.html). Headers of Debian 12 end at 0.6, so the
// table is declared here.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

namespace flashmha::python {

struct DLPackExchange {
  struct {
    std::uint32_t major, minor;
  } version;
  void* previous;
  void (*allocate)();
  void (*managed_from_object)();
  void (*managed_to_object)();
  // 0, or -1 with a Python exception set. May be null.
  int (*tensor_from_object)(void* object, DLTensor* out);
  int (*current_stream)(DLDeviceType device_type, std::int32_t device_id, void** out);
};

inline constexpr const char* kExchangeAttribute = "__dlpack_c_exchange_api__";
inline constexpr const char* kExchangeCapsule = "dlpack_exchange_api";

}  // namespace flashmha::python
