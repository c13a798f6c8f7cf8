// One block of queries attends to one block of keys (Dao 2023, "FlashAttention-2", algorithm 1).
// Compiled once for each tier.
//
// Cost of a pair (query, key): 2 (head_dim + head_dim_v) FLOPs in two matrix products, one
// exponential, and 16 bytes of traffic in the L1 cache for its score. Scores exist for kGroupRows
// queries at a time: a group's scores, one panel of keys and one panel of values fit in 32 KiB.
//
//   for each group of rows:          S = Q K^T           kGroupRows x block, panel by panel
//                                    S = options(S)      softcap, ALiBi, bias; then hide
//                                    P = exp(S - top)    rescales out where a row's top rises
//                                    out += P V
//
// A group that sees only a part of the block (the edge of a causal mask or window) is cut into
// register tiles of kTileRows, each with its own range of keys.

#include "cpu/query_tile.h"

namespace flashmha::cpu::FLASHMHA_ISA {
namespace {

constexpr int64_t kGroupRows = 4 * kTileRows;
static_assert(kGroupRows <= kMaxGroupRows);

bool pack_keys(const KeyRows& rows, int64_t head_dim, int64_t head_dim_v, int64_t capacity,
               float* keys, float* values) {
  bool finite = true;
  visit_storage(rows.storage, [&]<class T>(const T*) {
    pack_key_panels(reinterpret_cast<const T* const*>(rows.keys), rows.count, head_dim, keys);
    finite = pack_value_panels(reinterpret_cast<const T* const*>(rows.values), rows.count,
                               head_dim_v, capacity, values);
  });
  return finite;
}

// ---- the state of a tile -----------------------------------------------------------------------

void load_queries(const QueryTile& tile, int64_t first, int64_t num_rows, Storage storage,
                  const void* q, int64_t stride, float scale, float sink) {
  const int64_t padded = round_up(tile.head_dim, kLanes);
  visit_storage(storage, [&]<class T>(const T*) {
    widen_rows(static_cast<const T*>(q), stride, num_rows, tile.head_dim, scale,
               tile.q + first * tile.q_stride, tile.q_stride);
  });
  for (int64_t r = first; r < first + num_rows; ++r) {
    for (int64_t d = tile.head_dim; d < padded; ++d)
      tile.q[r * tile.q_stride + d] = 0.0f;
    for (int64_t d = 0; d < tile.out_stride; d += kLanes)
      store(tile.out + r * tile.out_stride + d, Vec{});
    tile.top[r] = sink;
    tile.sum[r] = sink == kMinusInfinity ? 0.0f : 1.0f;
  }
}

void store_queries(const QueryTile& tile, int64_t first, int64_t num_rows, Storage storage,
                   void* out, int64_t stride, float* lse, float scale) {
  for (int64_t r = 0; lse != nullptr && r < num_rows; r += kLanes) {
    const int count = static_cast<int>(smaller(kLanes, num_rows - r));
    const Vec total = load_n(tile.sum + first + r, count);
    const Vec ends = load_n(tile.top + first + r, count) + log(total);
    store_n(lse + r, select(total == 0.0f, set1(kMinusInfinity), ends), count);
  }
  visit_storage(storage, [&]<class T>(const T*) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const float total = tile.sum[first + r];
      store_row(tile.out + (first + r) * tile.out_stride, tile.head_dim_v,
                total == 0.0f ? 0.0f : scale / total, static_cast<T*>(out) + r * stride);
    }
  });
}

void merge(const QueryTile& tile, const QueryTile& part) {
  const int64_t padded = round_up(tile.head_dim_v, kLanes);
  for (int64_t r = 0; r < tile.num_rows; ++r) {
    const float mine = tile.top[r], theirs = part.top[r];
    // A NaN wins, so that it reaches the result.
    const float top = mine != mine || mine > theirs ? mine : theirs;
    const float my_factor = rescale_factor(mine, top);
    const float their_factor = rescale_factor(theirs, top);
    float* out = tile.out + r * tile.out_stride;
    const float* other = part.out + r * part.out_stride;
    for (int64_t d = 0; d < padded; d += kLanes)
      store(out + d, load(out + d) * my_factor + load(other + d) * their_factor);
    tile.top[r] = top;
    tile.sum[r] = tile.sum[r] * my_factor + part.sum[r] * their_factor;
  }
}

// ---- one block of packed keys ------------------------------------------------------------------

// Rows [first, first + num_rows) attend to keys [columns.begin, columns.end) of the block.
void attend_part(const QueryTile& tile, const KeyBlock& block, int64_t first, int64_t num_rows,
                 Span columns, bool edge) {
  const int64_t begin = columns.begin / kTileColumns * kTileColumns;
  const int64_t num_columns = round_up(columns.end - begin, kLanes);
  const ScoreTile scores = {tile.scores,         tile.score_stride,   num_rows,
                            num_columns,         block.first + begin, columns.end - begin,
                            tile.visible + first};
  const LeftView q = {tile.q + first * tile.q_stride, tile.q_stride};
  const RightView keys = {block.keys + begin * tile.head_dim, tile.head_dim * kTileColumns,
                          kTileColumns};
  multiply<Left::kRows, false>({num_rows, num_columns, tile.head_dim}, q, keys,
                               {scores.data, scores.stride});
  const bool hidden = weigh(tile, first, scores, edge);

  const int64_t skipped = columns.begin - begin;
  const LeftView weights = {scores.data + skipped, scores.stride};
  const RightView values = {block.values + columns.begin * kTileColumns,
                            block.capacity * kTileColumns, kTileColumns};
  const ProductSize size = {num_rows, round_up(tile.head_dim_v, kLanes),
                            columns.end - columns.begin};
  const OutView out = {tile.out + first * tile.out_stride, tile.out_stride};
  if (hidden && !block.finite) {
    mark_hidden(tile, first, scores);
    multiply_visible<Left::kRows>(size, weights, values.data, values.panel_stride,
                                  values.row_stride, out);
  } else {
    multiply<Left::kRows, true>(size, weights, values, out);
  }
}

// The part of the block that rows [first, first + num_rows) see, in columns.
Span columns_of(const Span& keys, const KeyBlock& block) {
  return {larger(0, keys.begin - block.first), smaller(block.count, keys.end - block.first)};
}

void attend_block(const QueryTile& tile, const KeyBlock& block) {
  const Span whole = {0, block.count};
  for (int64_t first = 0; first < tile.num_rows; first += kGroupRows) {
    const int64_t num_rows = smaller(kGroupRows, tile.num_rows - first);
    const Span all = columns_of(reach_of(tile.visible + first, num_rows).all, block);
    if (all.begin == 0 && all.end == block.count) {
      attend_part(tile, block, first, num_rows, whole, false);
      continue;
    }
    for (int64_t r = first; r < first + num_rows; r += kTileRows) {
      const int64_t some = smaller(kTileRows, first + num_rows - r);
      const Span any = columns_of(reach_of(tile.visible + r, some).any, block);
      if (any.begin < any.end) attend_part(tile, block, r, some, any, true);
    }
  }
}

}  // namespace

extern const ForwardKernels forward_kernels;
constexpr ForwardKernels forward_kernels = {pack_keys, load_queries, attend_block, merge,
                                            store_queries};

}  // namespace flashmha::cpu::FLASHMHA_ISA
