// Elementwise copies between strided tensors: clone, cast, copy, fill. This is the host's part.
#include <cstring>

#include "core/check.h"
#include "core/cuda.h"
#include "core/format.h"
#include "core/visit.h"
#include "flashmha/tensor.h"

namespace flashmha {
namespace {

bool on_host(const TensorView& view) {
  return view.device.type == DeviceType::cpu;
}

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<To, double> && std::is_class_v<From>) {
    return static_cast<double>(static_cast<float>(value));
  } else if constexpr (std::is_class_v<To> && !std::is_same_v<From, float>) {
    return To(static_cast<float>(value));
  } else if constexpr (std::is_class_v<From> && !std::is_same_v<To, float>) {
    return static_cast<To>(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

// Calls row(source_offset, destination_offset) for every innermost row, both offsets in elements.
template <class Row>
void for_each_row(const TensorView& source, const TensorView& destination, Row row) {
  const int inner = source.rank() - 1;
  Shape index = source.shape;
  for (int dim = 0; dim < inner; ++dim)
    index[dim] = 0;
  if (source.numel() == 0) return;
  while (true) {
    std::int64_t from = 0;
    std::int64_t to = 0;
    for (int dim = 0; dim < inner; ++dim) {
      from += index[dim] * source.strides[dim];
      to += index[dim] * destination.strides[dim];
    }
    row(from, to);
    int dim = inner - 1;
    while (dim >= 0 && ++index[dim] == source.shape[dim])
      index[dim--] = 0;
    if (dim < 0) return;
  }
}

// Elements of the same type are moved as bits: a NaN keeps its payload, a boolean any byte that
// lies there (workspaces are tensors of bytes).
void copy_bits(const TensorView& source, const TensorView& destination) {
  const int inner = source.rank() - 1;
  const std::int64_t length = source.shape[inner];
  const std::int64_t from_stride = source.strides[inner];
  const std::int64_t to_stride = destination.strides[inner];
  visit_dtype(source.dtype, [&]<class T>(T) {
    const T* from = source.as<T>();
    T* to = destination.as<T>();
    for_each_row(source, destination, [&](std::int64_t from_offset, std::int64_t to_offset) {
      if (from_stride == 1 && to_stride == 1) {
        std::memmove(to + to_offset, from + from_offset,
                     static_cast<std::size_t>(length) * sizeof(T));
        return;
      }
      for (std::int64_t i = 0; i < length; ++i) {
        std::memcpy(to + to_offset + i * to_stride, from + from_offset + i * from_stride,
                    sizeof(T));
      }
    });
  });
}

}  // namespace

void copy(const TensorView& source, const TensorView& destination, Stream stream) {
  check(source.shape == destination.shape, "[copy] shapes must be equal; got {} and {}", source,
        destination);
  check(source.dtype == destination.dtype ||
            is_floating(source.dtype) == is_floating(destination.dtype),
        "[copy] converts floating to floating or integer to integer; got {} and {}", source,
        destination);
  if (!source.defined()) return;
  if (!on_host(source) || !on_host(destination)) return cuda_copy(source, destination, stream);
  if (source.dtype == destination.dtype) return copy_bits(source, destination);
  const int inner = source.rank() - 1;
  visit_dtype(source.dtype, [&]<class From>(From) {
    visit_dtype(destination.dtype, [&]<class To>(To) {
      const From* from = source.as<From>();
      To* to = destination.as<To>();
      const std::int64_t length = source.shape[inner];
      const std::int64_t from_stride = source.strides[inner];
      const std::int64_t to_stride = destination.strides[inner];
      for_each_row(source, destination, [&](std::int64_t from_offset, std::int64_t to_offset) {
        for (std::int64_t i = 0; i < length; ++i) {
          to[to_offset + i * to_stride] = convert<To>(from[from_offset + i * from_stride]);
        }
      });
    });
  });
}

void fill(const TensorView& destination, double value, Stream stream) {
  if (!destination.defined()) return;
  if (!on_host(destination)) return cuda_fill(destination, value, stream);
  if (value == 0.0 && destination.is_contiguous()) {
    if (destination.numel() > 0) std::memset(destination.data, 0, destination.bytes());
    return;
  }
  const int inner = destination.rank() - 1;
  visit_dtype(destination.dtype, [&]<class To>(To) {
    To* to = destination.as<To>();
    const To element = convert<To>(value);
    for_each_row(destination, destination, [&](std::int64_t, std::int64_t offset) {
      for (std::int64_t i = 0; i < destination.shape[inner]; ++i) {
        to[offset + i * destination.strides[inner]] = element;
      }
    });
  });
}

Tensor clone(const TensorView& source, Stream stream) {
  return cast(source, source.dtype, stream);
}

Tensor cast(const TensorView& source, DType dtype, Stream stream) {
  check(source.defined(), "[cast] needs a tensor; got none");
  Tensor result = Tensor::empty(source.shape, dtype, source.device, stream);
  copy(source, result, stream);
  return result;
}

}  // namespace flashmha
