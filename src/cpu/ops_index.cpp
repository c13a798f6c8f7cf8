// Rows picked by index: padding, embedding, argmax.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "cpu/ops.h"
#include "cpu/ops_rows.h"

namespace flashmha::cpu::ops {
namespace {

std::int64_t index_at(const TensorView& indices, std::int64_t i) {
  return indices.dtype == DType::int32 ? indices.as<std::int32_t>()[i]
                                       : indices.as<std::int64_t>()[i];
}

enum class NoRow : bool { refused, allowed };

void check_indices(const char* function, const TensorView& indices, std::int64_t limit,
                   NoRow no_row) {
  for (std::int64_t i = 0; i < indices.numel(); ++i) {
    const std::int64_t index = index_at(indices, i);
    if (index == kNoRow && no_row == NoRow::allowed) continue;
    check(index >= 0 && index < limit, "[{}] indices must be in [0, {}); got {} at {}", function,
          limit, index, i);
  }
}

bool is_true(const TensorView& view, std::int64_t row, std::int64_t column) {
  const std::int64_t at = row * view.strides[0] + column * view.strides[1];
  switch (view.dtype) {
    case DType::boolean: return view.as<bool>()[at];
    case DType::int32: return view.as<std::int32_t>()[at] != 0;
    default: return view.as<std::int64_t>()[at] != 0;
  }
}

// Rows along dimension 0 as bytes.
struct ByteRows {
  explicit ByteRows(const TensorView& view)
      : data(static_cast<std::byte*>(view.data)),
        stride(view.strides[0] * static_cast<std::int64_t>(dtype_bytes(view.dtype))),
        bytes(view.size(0) > 0 ? view.bytes() / static_cast<std::size_t>(view.size(0)) : 0) {}
  std::byte* row(std::int64_t r) const { return data + r * stride; }

  std::byte* data;
  std::int64_t stride;
  std::size_t bytes;
};

}  // namespace

void gather_rows(const TensorView& x, const TensorView& indices, const TensorView& y, Stream) {
  check_indices("gather_rows", indices, x.size(0), NoRow::allowed);
  const ByteRows from(x);
  const ByteRows to(y);
  const auto* index = indices.as<std::int64_t>();
  parallel_blocks(indices.numel(), static_cast<std::int64_t>(to.bytes / sizeof(float)),
                  [&](std::int64_t begin, std::int64_t end) {
                    for (std::int64_t i = begin; i < end; ++i) {
                      if (index[i] == kNoRow) {
                        std::memset(to.row(i), 0, to.bytes);
                      } else {
                        std::memcpy(to.row(i), from.row(index[i]), to.bytes);
                      }
                    }
                  });
}

void scatter_rows(const TensorView& x, const TensorView& indices, const TensorView& y, Stream) {
  check_indices("scatter_rows", indices, y.size(0), NoRow::allowed);
  const ByteRows from(x);
  const ByteRows to(y);
  std::vector<std::int64_t> source(static_cast<std::size_t>(y.size(0)), -1);
  const auto* index = indices.as<std::int64_t>();
  for (std::int64_t i = 0; i < indices.numel(); ++i) {
    if (index[i] != kNoRow) source[static_cast<std::size_t>(index[i])] = i;
  }
  parallel_blocks(y.size(0), static_cast<std::int64_t>(to.bytes / sizeof(float)),
                  [&](std::int64_t begin, std::int64_t end) {
                    for (std::int64_t r = begin; r < end; ++r) {
                      const std::int64_t i = source[static_cast<std::size_t>(r)];
                      if (i < 0) {
                        std::memset(to.row(r), 0, to.bytes);
                      } else {
                        std::memcpy(to.row(r), from.row(i), to.bytes);
                      }
                    }
                  });
}

void unpad(const TensorView& mask, const TensorView& reserved, const TensorView& indices,
           const TensorView& cu_seqlens, const TensorView& seqused, Stream) {
  auto* kept = indices.as<std::int64_t>();
  auto* starts = cu_seqlens.as<std::int32_t>();
  const std::int64_t room = indices.numel();
  std::int64_t count = 0;
  starts[0] = 0;
  for (std::int64_t row = 0; row < mask.size(0); ++row) {
    std::int32_t num_real = 0;
    for (std::int64_t column = 0; column < mask.size(1); ++column) {
      const bool real = is_true(mask, row, column);
      const bool keeps = reserved.defined() && is_true(reserved, row, column);
      check(!(real && keeps), "[unpad] mask and reserved overlap at [{},{}]", row, column);
      num_real += real;
      if ((real || keeps) && count < room) kept[count++] = row * mask.size(1) + column;
    }
    starts[row + 1] = static_cast<std::int32_t>(count);
    if (seqused.defined()) seqused.as<std::int32_t>()[row] = num_real;
  }
  std::fill(kept + count, kept + room, kNoRow);
}

void embedding(const TensorView& table, const TensorView& ids, const TensorView& out, float scale,
               Stream) {
  check_indices("embedding", ids, table.size(0), NoRow::refused);
  const Rows from(table);
  const Rows to(out);
  parallel_blocks(ids.numel(), to.length(), [&](std::int64_t begin, std::int64_t end) {
    const RowBuffer buffer(to.length());
    for (std::int64_t i = begin; i < end; ++i) {
      const float* row = from.read(index_at(ids, i), buffer);
      float* target = to.target(i, buffer);
      row_kernels().scale(row, scale, to.length(), target);
      to.finish(i, target);
    }
  });
}

// Tasks share the columns, so that every sum is made by one thread, in the order of the tokens.
void embedding_backward(const TensorView& dout, const TensorView& ids, const TensorView& dtable,
                        float scale, Stream) {
  check_indices("embedding_backward", ids, dtable.size(0), NoRow::refused);
  constexpr std::int64_t kColumns = 128;
  const Rows from(dout);
  const Rows to(dtable);
  const std::int64_t tasks = (to.length() + kColumns - 1) / kColumns;
  parallel_for(tasks, num_threads(), [&](std::int64_t task, int) {
    const std::int64_t begin = task * kColumns;
    const std::int64_t n = std::min(kColumns, to.length() - begin);
    float buffer[kColumns];
    for (std::int64_t i = 0; i < ids.numel(); ++i) {
      float* sum = to.target(index_at(ids, i), begin, nullptr);
      row_kernels().add_scaled(from.read(i, begin, n, buffer), scale, n, sum);
    }
  });
}

void argmax(const TensorView& x, const TensorView& out, const TensorView& largest, Stream) {
  const Rows rows(x);
  auto* result = out.as<std::int32_t>();
  parallel_blocks(rows.count(), rows.length(), [&](std::int64_t begin, std::int64_t end) {
    const RowBuffer buffer(rows.length());
    for (std::int64_t r = begin; r < end; ++r) {
      const float* row = rows.read(r, buffer);
      std::int64_t best = 0;
      for (std::int64_t j = 0; j < rows.length() && !std::isnan(row[best]); ++j) {
        if (row[j] > row[best] || std::isnan(row[j])) best = j;
      }
      result[r] = static_cast<std::int32_t>(best);
      if (largest.defined()) largest.as<float>()[r] = row[best];
    }
  });
}

}  // namespace flashmha::cpu::ops
