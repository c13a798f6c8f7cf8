// Checks and dispatch: gathering and scattering rows, embedding, argmax.
#include <limits>

#include "ops/rules.h"

namespace flashmha::ops {
namespace {

// x [rows, ...] and y [n, ...]: one dtype, equal rows, each row contiguous.
const OpsTable& check_rows(std::string_view function, const Named& full, const Named& picked,
                           const TensorView& indices) {
  for (const Named& tensor : {full, picked}) {
    require_given(function, tensor);
    TensorView row = tensor.view;
    row.shape[0] = 1;
    require_contiguous(function, {tensor.name, row});
  }
  require_dtype(function, picked, full.view.dtype);
  require_dtype(function, {"indices", indices}, DType::int64);
  require_contiguous(function, {"indices", indices});
  check(indices.rank() == 1, "[{}] indices must have rank 1; got {}", function, indices);
  Shape expected = full.view.shape;
  expected[0] = indices.size(0);
  require_shape(function, picked, expected);
  return backend(function, {full, picked, {"indices", indices}});
}

const OpsTable& check_embedding(std::string_view function, const Named& table, const Named& out,
                                const TensorView& ids) {
  require_floating(function, {table, out});
  require_rows(function, {table, out});
  require_index(function, {"ids", ids});
  check(table.view.rank() == 2, "[{}] {} must be [vocabulary,hidden]; got {}", function, table.name,
        table.view);
  check(out.view.rank() == ids.rank() + 1 && leading_shape(out.view.shape) == ids.shape &&
            out.view.size(-1) == table.view.size(1),
        "[{}] {} must have the shape of ids {} and then hidden ({}); got {}", function, out.name,
        ids.shape, table.view.size(1), out.view);
  return backend(function, {table, out, {"ids", ids}});
}

}  // namespace

void gather_rows(const TensorView& x, const TensorView& indices, const TensorView& y,
                 Stream stream) {
  const OpsTable& table = check_rows("gather_rows", {"x", x}, {"y", y}, indices);
  if (y.numel() > 0) table.gather_rows(x, indices, y, stream);
}

void scatter_rows(const TensorView& x, const TensorView& indices, const TensorView& y,
                  Stream stream) {
  const OpsTable& table = check_rows("scatter_rows", {"y", y}, {"x", x}, indices);
  if (y.numel() > 0) table.scatter_rows(x, indices, y, stream);
}

void unpad(const TensorView& mask, const TensorView& reserved, const TensorView& indices,
           const TensorView& cu_seqlens, const TensorView& seqused, Stream stream) {
  require_given("unpad", {"mask", mask});
  check(mask.rank() == 2, "[unpad] mask must be [batch,seqlen]; got {}", mask);
  for (const Named& tensor : {Named{"mask", mask}, Named{"reserved", reserved}}) {
    if (!tensor.view.defined()) continue;
    const DType dtype = tensor.view.dtype;
    check(dtype == DType::boolean || dtype == DType::int32 || dtype == DType::int64,
          "[unpad] {} must be boolean, int32 or int64; got {}", tensor.name, tensor.view);
    require_shape("unpad", tensor, mask.shape);
  }
  require_dtype("unpad", {"indices", indices}, DType::int64);
  require_contiguous("unpad", {"indices", indices});
  check(indices.rank() == 1, "[unpad] indices must have rank 1; got {}", indices);
  require_dtype("unpad", {"cu_seqlens", cu_seqlens}, DType::int32);
  require_shape("unpad", {"cu_seqlens", cu_seqlens}, {mask.size(0) + 1});
  require_contiguous("unpad", {"cu_seqlens", cu_seqlens});
  if (seqused.defined()) {
    require_dtype("unpad", {"seqused", seqused}, DType::int32);
    require_shape("unpad", {"seqused", seqused}, {mask.size(0)});
    require_contiguous("unpad", {"seqused", seqused});
  }
  constexpr std::int64_t kMostTokens = std::numeric_limits<std::int32_t>::max();
  check(mask.numel() <= kMostTokens, "[unpad] a batch must have less than 2^31 tokens; got {}",
        mask);
  backend("unpad", {{"mask", mask},
                    {"reserved", reserved},
                    {"indices", indices},
                    {"cu_seqlens", cu_seqlens},
                    {"seqused", seqused}})
      .unpad(mask, reserved, indices, cu_seqlens, seqused, stream);
}

void embedding(const TensorView& table, const TensorView& ids, const TensorView& out, float scale,
               Stream stream) {
  const OpsTable& ops = check_embedding("embedding", {"table", table}, {"out", out}, ids);
  if (out.numel() > 0) ops.embedding(table, ids, out, scale, stream);
}

void embedding_backward(const TensorView& dout, const TensorView& ids, const TensorView& dtable,
                        float scale, Stream stream) {
  require_dtype("embedding_backward", {"dtable", dtable}, DType::float32);
  const OpsTable& ops =
      check_embedding("embedding_backward", {"dtable", dtable}, {"dout", dout}, ids);
  if (dout.numel() > 0) ops.embedding_backward(dout, ids, dtable, scale, stream);
}

void argmax(const TensorView& x, const TensorView& out, const TensorView& largest, Stream stream) {
  require_floating("argmax", {{"x", x}});
  require_rows("argmax", {{"x", x}});
  require_dtype("argmax", {"out", out}, DType::int32);
  require_shape("argmax", {"out", out}, leading_shape(x.shape));
  require_contiguous("argmax", {"out", out});
  if (largest.defined()) {
    require_dtype("argmax", {"largest", largest}, DType::float32);
    require_shape("argmax", {"largest", largest}, out.shape);
    require_contiguous("argmax", {"largest", largest});
  }
  check(x.size(-1) > 0, "[argmax] rows must not be empty; got {}", x);
  const OpsTable& table = backend("argmax", {{"x", x}, {"out", out}, {"largest", largest}});
  if (out.numel() > 0) table.argmax(x, out, largest, stream);
}

}  // namespace flashmha::ops
