// The matrix product: what cuBLASLt serves goes to it as it is; everything else is brought into a
// form that it serves, with memory from the stream's pool.
#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <utility>

#include "core/check.h"
#include "core/format.h"
#include "cuda/ops/ops.h"
#include "cuda/ops/product.h"

namespace flashmha::cuda::ops {
namespace {

// The matrices of the last two dimensions; not given if neither rows nor columns are contiguous.
std::optional<ProductMatrix> matrix_of(const TensorView& view) {
  const std::int64_t rows = view.size(-2);
  const std::int64_t columns = view.size(-1);
  const std::int64_t row_stride = view.stride(-2);
  const std::int64_t column_stride = view.stride(-1);
  ProductMatrix matrix{.data = view.data, .dtype = view.dtype};
  if ((columns == 1 || column_stride == 1) && (rows == 1 || row_stride >= columns)) {
    matrix.leading = rows == 1 ? columns : row_stride;
    return matrix;
  }
  if ((rows == 1 || row_stride == 1) && (columns == 1 || column_stride >= rows)) {
    matrix.transposed = true;
    matrix.leading = columns == 1 ? rows : column_stride;
    return matrix;
  }
  return {};
}

// Leading dimensions that can be counted as one are one: a batch of cuBLASLt has one stride.
class Batches {
 public:
  struct Dimension {
    std::int64_t size = 1;
    std::array<std::int64_t, 3> strides{};  // of a, b, c
  };

  Batches(const TensorView& a, const TensorView& b, const TensorView& c) {
    for (int dim = c.rank() - 3; dim >= 0; --dim) {
      if (c.shape[dim] == 1) continue;
      add({c.shape[dim], {a.strides[dim], b.strides[dim], c.strides[dim]}});
    }
  }

  // Takes out the longest dimension: what one call of cuBLASLt does.
  Dimension take_longest() {
    const auto begin = dims_.begin();
    const auto longest =
        std::max_element(begin, begin + num_dims_,
                         [](const Dimension& x, const Dimension& y) { return x.size < y.size; });
    if (num_dims_ == 0) return {};
    --num_dims_;
    std::swap(*longest, dims_[static_cast<std::size_t>(num_dims_)]);
    return dims_[static_cast<std::size_t>(num_dims_)];
  }

  // Of what is left.
  std::int64_t count() const {
    std::int64_t product = 1;
    for (const Dimension& dim : dims())
      product *= dim.size;
    return product;
  }

  // Offsets of a, b and c for the index-th.
  std::array<std::int64_t, 3> offsets(std::int64_t index) const {
    std::array<std::int64_t, 3> result{};
    for (const Dimension& dim : dims()) {
      for (std::size_t operand = 0; operand < 3; ++operand)
        result[operand] += index % dim.size * dim.strides[operand];
      index /= dim.size;
    }
    return result;
  }

 private:
  std::span<const Dimension> dims() const {
    return std::span(dims_).first(static_cast<std::size_t>(num_dims_));
  }

  void add(const Dimension& outer) {
    if (num_dims_ > 0) {
      Dimension& inner = dims_[static_cast<std::size_t>(num_dims_ - 1)];
      bool continues = true;
      for (std::size_t operand = 0; operand < 3; ++operand)
        continues &= outer.strides[operand] == inner.size * inner.strides[operand];
      if (continues) {
        inner.size *= outer.size;
        return;
      }
    }
    dims_[static_cast<std::size_t>(num_dims_++)] = outer;
  }

  std::array<Dimension, Shape::kMaxRank - 2> dims_{};
  int num_dims_ = 0;
};

void* advanced(const ProductMatrix& matrix, std::int64_t elements) {
  return static_cast<std::byte*>(matrix.data) +
         elements * static_cast<std::int64_t>(dtype_bytes(matrix.dtype));
}

// The products of all batches; false if cuBLASLt cannot do it.
bool multiply_all(const Call& call, Product product, Batches batches) {
  const Batches::Dimension batch = batches.take_longest();
  product.batch = batch.size;
  product.a.batch_stride = batch.strides[0];
  product.b.batch_stride = batch.strides[1];
  product.c.batch_stride = batch.strides[2];
  const Product first = product;
  const std::int64_t count = batches.count();
  for (std::int64_t i = 0; i < count; ++i) {
    const auto offsets = batches.offsets(i);
    product.a.data = advanced(first.a, offsets[0]);
    product.b.data = advanced(first.b, offsets[1]);
    product.c.data = advanced(first.c, offsets[2]);
    if (!multiply(call, product)) return false;
  }
  return true;
}

bool is_aligned(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}

// Straight into c; false if cuBLASLt does not serve it, and then c is as it was if beta is not 0.
// Some of its kernels round a product to 16 bits before they add c, and all before they add a bias:
// what separate operations do, too.
bool try_directly(const Call& call, const TensorView& a, const TensorView& b, const TensorView& c,
                  const MatmulOptions& options) {
  if (a.size(-1) == 0 || a.dtype != b.dtype) return false;
  if (c.dtype != a.dtype && c.dtype != DType::float32) return false;
  const auto from_a = matrix_of(a);
  const auto from_b = matrix_of(b);
  const auto to = matrix_of(c);
  if (!from_a || !from_b || !to) return false;
  const TensorView& bias = options.bias;
  if (to->transposed) {
    if (bias.defined()) return false;
    return try_directly(call, b.transpose(-1, -2), a.transpose(-1, -2), c.transpose(-1, -2),
                        options);
  }
  const bool fits =
      !bias.defined() || (options.beta == 0.0f && bias.dtype == c.dtype && is_aligned(bias.data) &&
                          (bias.numel() == 1 || bias.stride(0) == 1));
  if (!fits) return false;
  const Product product{.m = c.size(-2),
                        .n = c.size(-1),
                        .k = a.size(-1),
                        .a = *from_a,
                        .b = *from_b,
                        .c = *to,
                        .alpha = options.alpha,
                        .beta = options.beta,
                        .bias = bias.defined() ? bias.data : nullptr};
  return multiply_all(call, product, Batches(a, b, c));
}

// An operand as float32 or with contiguous rows, where it must be.
TensorView prepared(const TensorView& x, DType dtype, Tensor& memory, Stream stream) {
  if (x.dtype == dtype && matrix_of(x)) return x;
  memory = cast(x, dtype, stream);
  return memory;
}

}  // namespace

void matmul(const TensorView& a, const TensorView& b, const TensorView& c,
            const MatmulOptions& options, Stream stream) {
  const Call call("matmul", c.device, stream);
  if (try_directly(call, a, b, c, options)) return;
  const DType dtype = a.dtype == b.dtype ? a.dtype : DType::float32;
  Tensor memory_a;
  Tensor memory_b;
  const Tensor product = Tensor::empty(c.shape, DType::float32, c.device, stream);
  if (a.size(-1) == 0) {
    fill(product, 0.0, stream);
  } else {
    const TensorView left = prepared(a, dtype, memory_a, stream);
    const TensorView right = prepared(b, dtype, memory_b, stream);
    check(try_directly(call, left, right, product, {.alpha = options.alpha}),
          "[matmul] cuBLASLt has no kernel for {} times {}", left, right);
  }
  finish_product(product, c, options, stream);
}

}  // namespace flashmha::cuda::ops
