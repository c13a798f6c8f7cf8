// Gradients of a block of queries and a block of keys (Dao 2023, "FlashAttention-2", algorithm 2).
// Compiled once for each tier.
//
// Cost of a pair (query, key): 2 (3 head_dim + 2 head_dim_v) FLOPs in five matrix products and one
// exponential. Two tiles of scores exist at a time, p and ds.
//
//   S  = Q K^T, options         P  = exp(S - lse)           probabilities again, not stored
//   dP = dO V^T                 dS = P (dP - delta)         delta = dO . O - dlse
//   dV += P^T dO                dK += dS^T Q                owned by the block of keys
//   dQ += dS K                                              in the order of the blocks of keys
//
// Hidden pairs hold -0 in both tiles: it adds nothing, and multiply_visible can tell it from the
// zero of a visible pair.

#include "cpu/rows.h"

namespace flashmha::cpu::FLASHMHA_ISA {
namespace {

constexpr int64_t kGroupRows = 4 * kTileRows;
constexpr float kHidden = -0.0f;

// ---- loading -----------------------------------------------------------------------------------

void row_deltas(int64_t num_rows, int64_t head_dim_v, Storage storage, const void* dout,
                int64_t dout_stride, const void* out, int64_t out_stride, const float* dlse,
                float* delta) {
  visit_storage(storage, [&]<class T>(const T*) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const T* a = static_cast<const T*>(dout) + r * dout_stride;
      const T* b = static_cast<const T*>(out) + r * out_stride;
      Vec total = {};
      int64_t d = 0;
      for (; d + kLanes <= head_dim_v; d += kLanes)
        total += load(a + d) * load(b + d);
      const int rest = static_cast<int>(head_dim_v - d);
      if (rest > 0) total += load_n(a + d, rest) * load_n(b + d, rest);
      delta[r] = sum(total) - (dlse ? dlse[r] : 0.0f);
    }
  });
}

// Rows as floats, times scale, with zeros up to a whole vector. Returns whether all are finite.
template <class T>
bool load_row(const T* row, int64_t num_columns, float scale, float* to) {
  Vec zero = {};
  for (int64_t d = 0; d < num_columns; d += kLanes) {
    const int64_t rest = num_columns - d;
    const Vec x =
        (rest >= kLanes ? load(row + d) : load_n(row + d, static_cast<int>(rest))) * scale;
    zero += x * 0.0f;
    store(to + d, x);
  }
  return sum(zero) == 0.0f;
}

void load_keys(GradientKeys& block, const KeyRows& rows, int64_t head_dim, int64_t head_dim_v) {
  block.finite = true;
  visit_storage(rows.storage, [&]<class T>(const T*) {
    const auto keys = reinterpret_cast<const T* const*>(rows.keys);
    const auto values = reinterpret_cast<const T* const*>(rows.values);
    pack_key_panels(keys, rows.count, head_dim, block.keys_transposed);
    pack_key_panels(values, rows.count, head_dim_v, block.values_transposed);
    for (int64_t k = 0; k < rows.count; ++k) {
      // The transposed values cannot be looked at as cheaply; dv's row is free to receive a copy.
      block.finite &= load_row(keys[k], head_dim, 1.0f, block.keys + k * block.key_stride);
      block.finite &= load_row(values[k], head_dim_v, 1.0f, block.dv + k * block.value_stride);
    }
  });
  for (int64_t k = 0; k < rows.count; ++k) {
    for (int64_t d = 0; d < head_dim; d += kLanes)
      store(block.dk + k * block.key_stride + d, Vec{});
    for (int64_t d = 0; d < head_dim_v; d += kLanes)
      store(block.dv + k * block.value_stride + d, Vec{});
  }
}

void load_queries(GradientTile& tile, Storage storage, const void* q, int64_t q_stride,
                  const void* dout, int64_t dout_stride, float scale) {
  tile.finite = true;
  visit_storage(storage, [&]<class T>(const T*) {
    for (int64_t r = 0; r < tile.num_rows; ++r) {
      tile.finite &= load_row(static_cast<const T*>(q) + r * q_stride, tile.head_dim, scale,
                              tile.q + r * tile.q_stride);
      tile.finite &= load_row(static_cast<const T*>(dout) + r * dout_stride, tile.head_dim_v, 1.0f,
                              tile.dout + r * tile.dout_stride);
    }
  });
}

// ---- p and ds ----------------------------------------------------------------------------------

// The part of the block that some or all of a few rows see, in columns.
Span columns_of(const Span& keys, const GradientKeys& block) {
  return {larger(0, keys.begin - block.first), smaller(block.count, keys.end - block.first)};
}

void fill(float* row, int64_t begin, int64_t end, float value) {
  for (int64_t c = begin; c < end; ++c)
    row[c] = value;
}

void exponentiate(const ScoreTile& p, const float* lse) {
  for (int64_t r = 0; r < p.num_rows; ++r) {
    float* row = p.data + r * p.stride;
    const Vec offset = set1(lse[r] * kLog2E);
    for (int64_t c = 0; c < p.num_columns; c += kLanes)
      store(row + c, exp2(load(row + c) * kLog2E - offset));
  }
}

// ds = p (dp - delta); + 0 turns a visible -0 into 0.
void finish_ds(const ScoreTile& p, const ScoreTile& ds, const float* delta) {
  for (int64_t r = 0; r < p.num_rows; ++r) {
    const float* from = p.data + r * p.stride;
    float* row = ds.data + r * ds.stride;
    const Vec offset = set1(delta[r]);
    for (int64_t c = 0; c < p.num_columns; c += kLanes)
      store(row + c, load(from + c) * (load(row + c) - offset) + 0.0f);
  }
}

// Dropout of a part: dp becomes dp * keep / (1 - dropout_p); keep is left in `mask` for p.
void drop_dp(const GradientTile& tile, int64_t first, const ScoreTile& dp, float* keep) {
  for (int64_t r = 0; r < dp.num_rows; ++r) {
    tile.options->keep_columns(tile.options->dropout, tile.first_row + first + r, dp.first_key,
                               dp.num_columns, keep + r * kMaxKeyBlock);
    change_row(dp, r, [&](Vec x, int64_t c, int) {
      return x * load(keep + r * kMaxKeyBlock + c) * tile.dropout_scale;
    });
  }
}

void multiply_rows(const ScoreTile& by, const float* factors, int64_t stride) {
  for (int64_t r = 0; r < by.num_rows; ++r) {
    change_row(by, r, [&](Vec x, int64_t c, int) { return x * load(factors + r * stride + c); });
  }
}

// Rows [first, first + num_rows) and columns [columns.begin, columns.end) of p and ds.
void differentiate_part(const GradientTile& tile, const GradientKeys& block, int64_t first,
                        int64_t num_rows, Span columns, bool edge) {
  const int64_t begin = columns.begin / kTileColumns * kTileColumns;
  const int64_t num_columns = round_up(columns.end - begin, kLanes);
  const int64_t at = first * tile.score_stride + begin;
  ScoreTile p = {tile.p + at,         tile.score_stride,   num_rows,
                 num_columns,         block.first + begin, columns.end - begin,
                 tile.visible + first};
  ScoreTile ds = p;
  ds.data = tile.ds + at;
  float* slopes = tile.slope ? tile.slope + at : nullptr;

  multiply<Left::kRows, false>(
      {num_rows, num_columns, tile.head_dim}, {tile.q + first * tile.q_stride, tile.q_stride},
      {block.keys_transposed + begin * tile.head_dim, tile.head_dim * kTileColumns, kTileColumns},
      {p.data, p.stride});
  multiply<Left::kRows, false>({num_rows, num_columns, tile.head_dim_v},
                               {tile.dout + first * tile.dout_stride, tile.dout_stride},
                               {block.values_transposed + begin * tile.head_dim_v,
                                tile.head_dim_v * kTileColumns, kTileColumns},
                               {ds.data, ds.stride});
  for (int64_t r = 0; tile.options && r < num_rows; ++r) {
    transform_row(p, r, tile.first_row + first + r, *tile.options,
                  slopes ? slopes + r * tile.score_stride : nullptr);
  }
  exponentiate(p, tile.lse + first);

  const bool dropout = tile.options && tile.options->keep_columns;
  float keep[kMaxGroupRows * kMaxKeyBlock];
  if (dropout) drop_dp(tile, first, ds, keep);
  finish_ds(p, ds, tile.delta + first);
  if (slopes) multiply_rows(ds, slopes, tile.score_stride);
  if (dropout) multiply_rows(p, keep, kMaxKeyBlock);

  if (edge) {
    hide(p, kHidden);
    hide(ds, kHidden);
  }
  for (int64_t r = 0; tile.options && tile.options->mask.data && r < num_rows; ++r) {
    mask_row(p, r, tile.first_row + first + r, tile.options->mask, kHidden);
    mask_row(ds, r, tile.first_row + first + r, tile.options->mask, kHidden);
  }
  for (int64_t r = first; edge && r < first + num_rows; ++r) {
    for (float* scores : {tile.p, tile.ds}) {
      fill(scores + r * tile.score_stride, 0, begin, kHidden);
      fill(scores + r * tile.score_stride, begin + num_columns, block.count, kHidden);
    }
  }
}

void differentiate(const GradientTile& tile, const GradientKeys& block) {
  for (int64_t first = 0; first < tile.num_rows; first += kGroupRows) {
    const int64_t num_rows = smaller(kGroupRows, tile.num_rows - first);
    const Span all = columns_of(reach_of(tile.visible + first, num_rows).all, block);
    if (all.begin == 0 && all.end == block.count) {
      differentiate_part(tile, block, first, num_rows, all, false);
      continue;
    }
    for (int64_t r = first; r < first + num_rows; r += kTileRows) {
      const int64_t some = smaller(kTileRows, first + num_rows - r);
      Span any = columns_of(reach_of(tile.visible + r, some).any, block);
      if (any.begin < any.end) {
        differentiate_part(tile, block, r, some, any, true);
        continue;
      }
      for (int64_t i = r; i < r + some; ++i) {
        fill(tile.p + i * tile.score_stride, 0, block.count, kHidden);
        fill(tile.ds + i * tile.score_stride, 0, block.count, kHidden);
      }
    }
  }
}

// ---- gradients ---------------------------------------------------------------------------------

// Rows of the tile that see some of the keys [first, first + count) of the block.
Span rows_that_see(const GradientTile& tile, const GradientKeys& block, int64_t first,
                   int64_t count) {
  const int64_t begin = block.first + first;
  Span rows = {tile.num_rows, 0};
  for (int64_t r = 0; r < tile.num_rows; ++r) {
    const Span& keys = tile.visible[r];
    if (keys.begin >= begin + count || keys.end <= begin || keys.begin >= keys.end) continue;
    rows = {smaller(rows.begin, r), r + 1};
  }
  return rows;
}

bool sees_all(const GradientTile& tile, const GradientKeys& block) {
  const Reach reach = reach_of(tile.visible, tile.num_rows);
  return reach.all.begin <= block.first && reach.all.end >= block.first + block.count;
}

// gradient[key] += weights[:, key]^T rows for the keys of the block.
void add_transposed(const GradientTile& tile, const GradientKeys& block, const float* weights,
                    const float* rows, int64_t stride, int64_t num_columns, float* gradient,
                    int64_t gradient_stride) {
  const int64_t padded = round_up(num_columns, kLanes);
  const bool exact = !tile.finite || !block.finite;
  const int64_t step = sees_all(tile, block) ? block.count : kGroupRows;
  for (int64_t key = 0; key < block.count; key += step) {
    const int64_t count = smaller(step, block.count - key);
    const Span seen = rows_that_see(tile, block, key, count);
    if (seen.begin >= seen.end) continue;
    const ProductSize size = {count, padded, seen.end - seen.begin};
    const LeftView left = {weights + seen.begin * tile.score_stride + key, tile.score_stride};
    const float* right = rows + seen.begin * stride;
    const OutView out = {gradient + key * gradient_stride, gradient_stride};
    if (exact) {
      multiply_visible<Left::kColumns>(size, left, right, kTileColumns, stride, out);
    } else {
      multiply<Left::kColumns, true>(size, left, in_place_view(right, stride), out);
    }
  }
}

void add_key_gradients(const GradientTile& tile, const GradientKeys& block) {
  add_transposed(tile, block, tile.p, tile.dout, tile.dout_stride, tile.head_dim_v, block.dv,
                 block.value_stride);
  add_transposed(tile, block, tile.ds, tile.q, tile.q_stride, tile.head_dim, block.dk,
                 block.key_stride);
}

void add_query_gradients(const GradientTile& tile, const GradientKeys& block, float* dq,
                         int64_t dq_stride) {
  const int64_t padded = round_up(tile.head_dim, kLanes);
  const bool exact = !tile.finite || !block.finite;
  const int64_t step = sees_all(tile, block) ? tile.num_rows : kTileRows;
  for (int64_t r = 0; r < tile.num_rows; r += step) {
    const int64_t num_rows = smaller(step, tile.num_rows - r);
    const Span keys = columns_of(reach_of(tile.visible + r, num_rows).any, block);
    if (keys.begin >= keys.end) continue;
    const ProductSize size = {num_rows, padded, keys.end - keys.begin};
    const LeftView left = {tile.ds + r * tile.score_stride + keys.begin, tile.score_stride};
    const float* right = block.keys + keys.begin * block.key_stride;
    const OutView out = {dq + r * dq_stride, dq_stride};
    if (exact) {
      multiply_visible<Left::kRows>(size, left, right, kTileColumns, block.key_stride, out);
    } else {
      multiply<Left::kRows, true>(size, left, in_place_view(right, block.key_stride), out);
    }
  }
}

// For the gradient of a bias: out[i * row_step][j * column_step] += ds, where a step is 0 along a
// dimension that the bias lacks.
void add_bias_gradient(const GradientTile& tile, const GradientKeys& block, float* out,
                       int64_t row_step, int64_t column_step) {
  for (int64_t r = 0; r < tile.num_rows; ++r) {
    const float* row = tile.ds + r * tile.score_stride;
    float* to = out + r * row_step;
    if (column_step == 0) {
      float total = 0.0f;
      for (int64_t c = 0; c < block.count; ++c)
        total += row[c];
      *to += total;
    } else {
      for (int64_t c = 0; c < block.count; ++c)
        to[c * column_step] += row[c];
    }
  }
}

}  // namespace

extern const BackwardKernels backward_kernels;
constexpr BackwardKernels backward_kernels = {
    .row_deltas = row_deltas,
    .load_keys = load_keys,
    .load_queries = load_queries,
    .differentiate = differentiate,
    .add_key_gradients = add_key_gradients,
    .add_query_gradients = add_query_gradients,
    .add_bias_gradient = add_bias_gradient,
    .store_rows = store_rows,
};

}  // namespace flashmha::cpu::FLASHMHA_ISA
