// Rows picked by index: padding, embedding, argmax.
#include <cub/device/device_radix_sort.cuh>

#include "cuda/ops/call.h"
#include "cuda/ops/ops.h"
#include "cuda/ops/rows.cuh"

namespace flashmha::cuda::ops {
namespace {

struct Ids {
  const void* data;
  bool wide;  // int64, else int32
  __device__ std::int64_t operator[](std::int64_t i) const {
    return wide ? static_cast<const std::int64_t*>(data)[i]
                : static_cast<const std::int32_t*>(data)[i];
  }
};

Ids ids_of(const TensorView& view) {
  return {view.data, view.dtype == DType::int64};
}

// ---- rows of bytes -----------------------------------------------------------------------------

// Rows along dimension 0, in units of as many bytes as divide all that there is.
struct ByteRows {
  std::byte* data;
  std::int64_t stride;  // bytes

  explicit ByteRows(const TensorView& view)
      : data(static_cast<std::byte*>(view.data)),
        stride(view.strides[0] * static_cast<std::int64_t>(dtype_bytes(view.dtype))) {}
  std::uintptr_t granularity() const {
    return reinterpret_cast<std::uintptr_t>(data) | static_cast<std::uintptr_t>(stride);
  }
};

struct RowMove {
  ByteRows from, to;
  const std::int64_t* indices;
  std::int64_t num_rows;  // of the side that is indexed
  bool scatters;
  std::int64_t units_per_row = 0;
  std::int64_t num_units = 0;
};

// to[i] = from[indices[i]], or the other way round. A wrong index gathers NaN (zeros if it is of no
// row) and scatters nothing.
template <class Unit>
__global__ void __launch_bounds__(kBlock) move_rows_kernel(const __grid_constant__ RowMove p) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (index >= p.num_units) return;
  const auto [i, unit] = divide(index, p.units_per_row);
  const std::int64_t row = p.indices[i];
  const bool known = row >= 0 && row < p.num_rows;
  if (p.scatters && !known) return;
  const std::byte* from = p.from.data + (p.scatters ? i : row) * p.from.stride;
  std::byte* to = p.to.data + (p.scatters ? row : i) * p.to.stride;
  Unit value;
  if (known) {
    value = reinterpret_cast<const Unit*>(from)[unit];
  } else {
    memset(&value, row == kNoRow ? 0x00 : 0xFF, sizeof(Unit));
  }
  reinterpret_cast<Unit*>(to)[unit] = value;
}

__global__ void __launch_bounds__(kBlock)
    clear_rows_kernel(const __grid_constant__ ByteRows rows, std::int64_t row_bytes,
                      std::int64_t num_bytes) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (index >= num_bytes) return;
  const auto [row, byte] = divide(index, row_bytes);
  rows.data[row * rows.stride + byte] = std::byte{0};
}

std::int64_t bytes_of_row(const TensorView& view) {
  return view.size(0) == 0 ? 0 : static_cast<std::int64_t>(view.bytes()) / view.size(0);
}

void move_rows(const Call& call, RowMove move, std::int64_t count, std::int64_t row_bytes) {
  const std::uintptr_t mixed =
      move.from.granularity() | move.to.granularity() | static_cast<std::uintptr_t>(row_bytes);
  const auto launch = [&]<class Unit>(Unit) {
    move.units_per_row = row_bytes / static_cast<std::int64_t>(sizeof(Unit));
    move.num_units = count * move.units_per_row;
    call.launch(move_rows_kernel<Unit>, (move.num_units + kBlock - 1) / kBlock, kBlock, move);
  };
  if (mixed % 16 == 0) {
    launch(uint4{});
  } else if (mixed % 2 == 0) {
    launch(std::uint16_t{});
  } else {
    launch(std::uint8_t{});
  }
}

// ---- embedding ---------------------------------------------------------------------------------

struct Lookup {
  TensorRows table, out;
  Ids ids;
  float scale;
  std::int64_t vectors_per_row = 0;
};

__global__ void __launch_bounds__(kBlock) embedding_kernel(const __grid_constant__ Lookup p) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  const auto [i, vector] = divide(index, p.vectors_per_row);
  if (i >= p.out.count) return;
  const std::int64_t id = p.ids[i];
  float x[kVector];
  if (id >= 0 && id < p.table.count) {
    load(p.table, row_offset(p.table, id), vector * kVector, x);
#pragma unroll
    for (float& value : x)
      value *= p.scale;
  } else {
#pragma unroll
    for (float& value : x)
      value = NAN;
  }
  store(p.out, row_offset(p.out, i), vector * kVector, x);
}

// Ids and their places, to be sorted; wrong ids become `vocabulary`, which no row has.
__global__ void __launch_bounds__(kBlock)
    number_ids_kernel(Ids ids, std::int64_t first, int count, std::int64_t vocabulary,
                      std::int32_t* keys, std::int32_t* places) {
  const int i = static_cast<int>(blockIdx.x) * kBlock + static_cast<int>(threadIdx.x);
  if (i >= count) return;
  const std::int64_t id = ids[first + i];
  keys[i] = static_cast<std::int32_t>(id >= 0 && id < vocabulary ? id : vocabulary);
  places[i] = i;
}

// Sorted by id, and by place among equal ids. The block at the first of equal ids adds them all, in
// the order of the tokens.
struct TableSums {
  TensorRows dout, dtable;
  float scale;
  int strips = 0;  // blocks side by side in a row
  const std::int32_t* keys = nullptr;
  const std::int32_t* places = nullptr;
  std::int64_t first = 0;  // token that place 0 stands for
  int count = 0;
};

constexpr int kStripThreads = 64;

__global__ void __launch_bounds__(kStripThreads)
    add_to_table_kernel(const __grid_constant__ TableSums p) {
  const int begin = static_cast<int>(blockIdx.x) / p.strips;
  const int strip = static_cast<int>(blockIdx.x) % p.strips;
  const std::int32_t id = p.keys[begin];
  if (id >= p.dtable.count || (begin > 0 && p.keys[begin - 1] == id)) return;
  const std::int64_t j = (std::int64_t{strip} * kStripThreads + threadIdx.x) * kVector;
  if (j >= p.dtable.length) return;
  float sum[kVector] = {};
  for (int i = begin; i < p.count && p.keys[i] == id; ++i) {
    float x[kVector];
    load(p.dout, row_offset(p.dout, p.first + p.places[i]), j, x);
#pragma unroll
    for (int n = 0; n < kVector; ++n)
      sum[n] += x[n];
  }
  const std::int64_t row = row_offset(p.dtable, id);
  float total[kVector];
  load(p.dtable, row, j, total);
#pragma unroll
  for (int n = 0; n < kVector; ++n)
    total[n] += p.scale * sum[n];
  store(p.dtable, row, j, total);
}

int bits_of(std::int64_t largest) {
  int bits = 1;
  while (bits < 31 && (largest >> bits) != 0)
    ++bits;
  return bits;
}

// ---- argmax ------------------------------------------------------------------------------------

struct Candidate {
  float value;
  std::int32_t index;
};

struct Better {
  __device__ Candidate operator()(Candidate a, Candidate b) const {
    const bool same = a.value == b.value || (isnan(a.value) && isnan(b.value));
    if (same) return a.index < b.index ? a : b;
    return isnan(a.value) || a.value > b.value ? a : b;
  }
};

template <int kTeam>
__global__ void __launch_bounds__(kTeam* kTeamsPerBlock<kTeam>)
    argmax_kernel(const __grid_constant__ TensorRows x, std::int32_t* out, float* largest) {
  const Place<kTeam> place;
  if (place.row >= x.count) return;
  const std::int64_t row = row_offset(x, place.row);
  Candidate best{-INFINITY, 0x7FFFFFFF};
  for (std::int64_t j = place.lane * kVector; j < x.length; j += kTeam * kVector) {
    float values[kVector];
    load(x, row, j, values);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (j + i < x.length) {
        best = Better()(best, {values[i], static_cast<std::int32_t>(j + i)});
      }
    }
  }
  best = reduce<kTeam>(best, Better());
  if (place.lane != 0) return;
  out[place.row] = best.index;
  if (largest) largest[place.row] = best.value;
}

}  // namespace

void gather_rows(const TensorView& x, const TensorView& indices, const TensorView& y,
                 Stream stream) {
  const Call call("gather_rows", y.device, stream);
  move_rows(call,
            {.from = ByteRows(x),
             .to = ByteRows(y),
             .indices = indices.as<std::int64_t>(),
             .num_rows = x.size(0),
             .scatters = false},
            indices.numel(), bytes_of_row(y));
}

void scatter_rows(const TensorView& x, const TensorView& indices, const TensorView& y,
                  Stream stream) {
  const Call call("scatter_rows", y.device, stream);
  const std::int64_t row_bytes = bytes_of_row(y);
  if (y.is_contiguous()) {
    call.check(cudaMemsetAsync(y.data, 0, y.bytes(), call.stream()));
  } else {
    const std::int64_t num_bytes = y.size(0) * row_bytes;
    call.launch(clear_rows_kernel, (num_bytes + kBlock - 1) / kBlock, kBlock, ByteRows(y),
                row_bytes, num_bytes);
  }
  move_rows(call,
            {.from = ByteRows(x),
             .to = ByteRows(y),
             .indices = indices.as<std::int64_t>(),
             .num_rows = y.size(0),
             .scatters = true},
            indices.numel(), row_bytes);
}

void embedding(const TensorView& table, const TensorView& ids, const TensorView& out, float scale,
               Stream stream) {
  const Call call("embedding", out.device, stream);
  Lookup p{.table = rows_of(table), .out = rows_of(out), .ids = ids_of(ids), .scale = scale};
  p.vectors_per_row = (p.out.length + kVector - 1) / kVector;
  const std::int64_t num_vectors = p.out.count * p.vectors_per_row;
  call.launch(embedding_kernel, (num_vectors + kBlock - 1) / kBlock, kBlock, p);
}

void embedding_backward(const TensorView& dout, const TensorView& ids, const TensorView& dtable,
                        float scale, Stream stream) {
  constexpr std::int64_t kMostAtOnce = std::int64_t{1} << 20;
  const Call call("embedding_backward", dout.device, stream);
  const std::int64_t vocabulary = dtable.size(0);
  const auto room = static_cast<std::size_t>(std::min(kMostAtOnce, ids.numel()));
  const auto sort = [&](void* scratch, std::size_t& bytes, std::int32_t* numbers, int count) {
    call.check(cub::DeviceRadixSort::SortPairs(scratch, bytes, numbers, numbers + 2 * room,
                                               numbers + room, numbers + 3 * room, count, 0,
                                               bits_of(vocabulary), call.stream()));
  };
  std::size_t sort_bytes = 0;
  sort(nullptr, sort_bytes, nullptr, static_cast<int>(room));  // asks
  // Ids and their places, unsorted and sorted, and what sorting needs.
  const Tensor numbers_memory = call.scratch(4 * room * sizeof(std::int32_t));
  const Tensor sort_memory = call.scratch(sort_bytes);
  auto* numbers = static_cast<std::int32_t*>(numbers_memory.view().data);
  TableSums sums{.dout = rows_of(dout), .dtable = rows_of(dtable), .scale = scale};
  const std::int64_t strip_columns = kStripThreads * kVector;
  sums.strips = static_cast<int>((sums.dtable.length + strip_columns - 1) / strip_columns);
  sums.keys = numbers + 2 * room;
  sums.places = numbers + 3 * room;
  for (std::int64_t first = 0; first < ids.numel(); first += kMostAtOnce) {
    sums.first = first;
    sums.count = static_cast<int>(std::min(kMostAtOnce, ids.numel() - first));
    call.launch(number_ids_kernel, (sums.count + kBlock - 1) / kBlock, kBlock, ids_of(ids), first,
                sums.count, vocabulary, numbers, numbers + room);
    sort(sort_memory.view().data, sort_bytes, numbers, sums.count);
    call.launch(add_to_table_kernel, std::int64_t{sums.count} * sums.strips, kStripThreads, sums);
  }
}

void argmax(const TensorView& x, const TensorView& out, const TensorView& largest, Stream stream) {
  const Call call("argmax", x.device, stream);
  const TensorRows rows = rows_of(x);
  launch_rows(call, rows, argmax_kernel<kWarp>, argmax_kernel<kBlock>, rows, out.as<std::int32_t>(),
              largest.defined() ? largest.as<float>() : nullptr);
}

}  // namespace flashmha::cuda::ops
