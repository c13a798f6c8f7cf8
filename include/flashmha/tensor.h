// Tensor: owning. TensorView: what every function takes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include "flashmha/device.h"
#include "flashmha/dtype.h"

namespace flashmha {

// Up to kMaxRank sizes; also used for strides, which count elements.
struct Shape {
  static constexpr int kMaxRank = 5;

  std::array<std::int64_t, kMaxRank> sizes{};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> values);  // throws invalid_argument above kMaxRank
  explicit Shape(std::span<const std::int64_t> values);

  std::int64_t operator[](int dim) const { return sizes[static_cast<std::size_t>(dim)]; }
  std::int64_t& operator[](int dim) { return sizes[static_cast<std::size_t>(dim)]; }
  const std::int64_t* begin() const { return sizes.data(); }
  const std::int64_t* end() const { return sizes.data() + rank; }

  friend bool operator==(const Shape&, const Shape&) = default;
};

// "[2,128,6,64]".
std::string to_string(const Shape& shape);

// A strided window on memory that somebody else owns; the fields are DLPack's. Trivially copyable
// and cheap to pass by value. A default-constructed view is "not given".
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::float32;
  Device device;
  Shape shape;
  Shape strides;  // in elements

  bool defined() const { return shape.rank > 0; }
  int rank() const { return shape.rank; }
  std::int64_t size(int dim) const;    // negative dims count from the end
  std::int64_t stride(int dim) const;  // in elements
  std::int64_t numel() const;
  std::size_t bytes() const { return static_cast<std::size_t>(numel()) * dtype_bytes(dtype); }
  bool is_contiguous() const;

  // Typed pointer to the first element; throws invalid_argument if T is not the view's dtype.
  template <class T>
  T* as() const {
    require_dtype(dtype_of<T>);
    return static_cast<T*>(data);
  }

  // Views of the same memory. Each throws invalid_argument where the result would not exist.
  TensorView slice(int dim, std::int64_t begin, std::int64_t end) const;
  TensorView select(int dim, std::int64_t index) const;  // drops the dimension
  TensorView transpose(int dim0, int dim1) const;
  TensorView reshape(const Shape& new_shape) const;   // one size may be -1
  TensorView broadcast_to(const Shape& shape) const;  // size 1 or missing dims get stride 0

  void require_dtype(DType expected) const;
};

// "float32 [2,128,6,64] on cpu".
std::string to_string(const TensorView& view);

// A contiguous view of elements in the caller's own memory on the CPU.
template <class T>
TensorView view_of(T* data, const Shape& shape);

// Row-major strides of a contiguous tensor.
Shape contiguous_strides(const Shape& shape);

// Owns one contiguous allocation, 64-byte aligned. Movable, not copyable: clone() says when bytes
// are copied.
class Tensor {
 public:
  Tensor() = default;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  Tensor(Tensor&&) noexcept = default;
  Tensor& operator=(Tensor&&) noexcept = default;
  ~Tensor() = default;

  // Memory with unspecified contents. Throws invalid_argument for negative or overflowing shapes,
  // out_of_memory if the allocation fails.
  static Tensor empty(const Shape& shape, DType dtype, Device device = {}, Stream stream = {});
  static Tensor zeros(const Shape& shape, DType dtype, Device device = {}, Stream stream = {});
  // A copy of values in row-major order.
  template <class T>
  static Tensor from(std::span<const T> values, const Shape& shape);
  template <class T>
  static Tensor from(std::initializer_list<T> values, const Shape& shape) {
    return from(std::span<const T>(values.begin(), values.size()), shape);
  }
  // Takes over memory with the function that releases it (how DLPack tensors come in).
  static Tensor adopt(const TensorView& view, std::shared_ptr<void> owner);

  bool defined() const { return view_.defined(); }
  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }  // NOLINT: a tensor is usable as its view

  DType dtype() const { return view_.dtype; }
  Device device() const { return view_.device; }
  const Shape& shape() const { return view_.shape; }
  std::int64_t size(int dim) const { return view_.size(dim); }
  std::int64_t numel() const { return view_.numel(); }
  template <class T>
  T* as() const {
    return view_.as<T>();
  }

 private:
  TensorView view_;
  std::shared_ptr<void> owner_;
};

// On a GPU these four are queued on the stream. A copy to the host has finished when it returns;
// the memory that a copy from the host read may be changed then.

// Contiguous copy of a strided view, on the same device.
Tensor clone(const TensorView& source, Stream stream = {});
// Contiguous copy converted to another dtype (floating to floating, or integer to integer).
Tensor cast(const TensorView& source, DType dtype, Stream stream = {});
// Elementwise copy between strided views of equal shape, each on the host or a GPU; converts
// between floating dtypes, and between integer dtypes.
void copy(const TensorView& source, const TensorView& destination, Stream stream = {});
// Sets every element.
void fill(const TensorView& destination, double value, Stream stream = {});

// Bytes of tensors and workspaces that are alive on a device, and the most there ever were since
// the start or the last reset_peak_memory.
struct MemoryStats {
  std::size_t current_bytes = 0;
  std::size_t peak_bytes = 0;
};
MemoryStats memory_stats(Device device = {});
void reset_peak_memory(Device device = {});

template <class T>
TensorView view_of(T* data, const Shape& shape) {
  using Element = std::remove_const_t<T>;
  return {const_cast<Element*>(data), dtype_of<Element>, Device{}, shape,
          contiguous_strides(shape)};
}

// Implementation of Tensor::from: checks the count and copies.
void copy_values(const Tensor& destination, const void* values, std::size_t count);

template <class T>
Tensor Tensor::from(std::span<const T> values, const Shape& shape) {
  Tensor tensor = empty(shape, dtype_of<T>);
  copy_values(tensor, values.data(), values.size());
  return tensor;
}

}  // namespace flashmha
