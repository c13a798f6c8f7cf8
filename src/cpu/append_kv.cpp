// Writes the new keys, rotated, and the new values behind the filled slots of the cache. The
// appended keys are the last seqlen_new keys of each sequence.

#include <array>
#include <cstring>

#include "cpu/forward.h"
#include "cpu/ops_rows.h"

namespace flashmha::cpu {
namespace {

constexpr std::size_t kMaxHeadDim = 256;

// Row i of one head of an appended tensor, [batch, seqlen_new, num_heads_kv, dim].
const std::byte* new_row(const TensorView& tensor, std::int64_t batch, std::int64_t i,
                         std::int64_t head) {
  const std::int64_t offset =
      batch * tensor.strides[0] + i * tensor.strides[1] + head * tensor.strides[2];
  return static_cast<const std::byte*>(tensor.data) +
         offset * static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
}

void append_row(const Problem& problem, const AttentionCall& call, const Sequence& sequence,
                std::int64_t head, std::int64_t i) {
  const std::int64_t key = sequence.seqlen_k - problem.layout.seqlen_new + i;
  const auto slot = [&](const TensorView& cache) {
    return find_keys(problem, call, cache, sequence, head, key, 1).rows.row(0);
  };
  const auto copy = [&](const TensorView& from, const TensorView& cache) {
    std::memcpy(slot(cache), new_row(from, sequence.batch, i, head),
                static_cast<std::size_t>(cache.size(-1)) * dtype_bytes(cache.dtype));
  };
  copy(call.append.v, call.cache.v);
  if (problem.layout.rotary_dim == 0) return copy(call.append.k, call.cache.k);
  std::array<float, kMaxHeadDim> row;
  const std::int64_t head_dim = problem.sizes.head_dim;
  load_row(problem.dtype, new_row(call.append.k, sequence.batch, i, head), head_dim, row.data());
  rotate_row(call.append.rotary, key_position(call, sequence, i), row.data());
  store_row(problem.dtype, row.data(), head_dim, slot(call.cache.k));
}

}  // namespace

void append_kv(const Problem& problem, const AttentionCall& call) {
  const std::int64_t num_heads = problem.sizes.num_heads_kv;
  const std::int64_t seqlen_new = problem.layout.seqlen_new;
  if (seqlen_new == 0) return;
  const std::int64_t elements = seqlen_new * (problem.sizes.head_dim + problem.sizes.head_dim_v);
  // A single token is less work than waking another thread.
  parallel_blocks(problem.sizes.batch * num_heads, elements,
                  [&](std::int64_t begin, std::int64_t end) {
                    for (std::int64_t unit = begin; unit < end; ++unit) {
                      const Sequence sequence = find_sequence(problem, call, unit / num_heads);
                      for (std::int64_t i = 0; i < seqlen_new; ++i)
                        append_row(problem, call, sequence, unit % num_heads, i);
                    }
                  });
}

}  // namespace flashmha::cpu
