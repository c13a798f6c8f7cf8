// Streaming attention, host side: sequences with so few queries that reading keys and values from
// memory is what takes the time. The keys of each head are cut into splits that are summed
// independently (Dao 2023, "Flash-Decoding") and added up exactly, in order.
//
// The size of a split depends on the sequence's own length and on num_splits alone, so that bits
// depend neither on the batch nor on the number of threads. Where one split holds all keys, it
// writes the result itself.

#include <algorithm>
#include <limits>

#include "core/parallel.h"
#include "cpu/forward.h"
#include "cpu/isa.h"

namespace flashmha::cpu {
namespace {

// Keys of a split: an even sixteenth of the sequence within these bounds.
constexpr std::int64_t kMinSplitKeys = 512;
constexpr std::int64_t kMaxSplitKeys = 2048;

std::int64_t split_keys(const Problem& problem, std::int64_t num_keys) {
  if (problem.layout.num_splits == 0) {
    return std::clamp(pad_to(ceil_div(num_keys, 16), kStreamBlock), kMinSplitKeys, kMaxSplitKeys);
  }
  const std::int64_t keys = ceil_div(num_keys, problem.layout.num_splits);
  return pad_to(std::max<std::int64_t>(keys, 1), kStreamBlock);
}

std::int64_t most_splits(const Problem& problem) {
  if (problem.layout.num_splits > 0) return problem.layout.num_splits;
  return std::max<std::int64_t>(16, ceil_div(problem.sizes.seqlen_k, kMaxSplitKeys));
}

// The sums of one split: out, top and sum of most_rows() rows.
std::int64_t partial_floats(const Problem& problem) {
  return most_rows(problem) * (ForwardGeometry(problem).out_stride + 2);
}

class StreamingForward {
 public:
  StreamingForward(const Problem& problem, const AttentionCall& call, const Slices& slices,
                   float* partials)
      : problem_(problem),
        call_(call),
        slices_(slices),
        partials_(partials),
        max_splits_(most_splits(problem)),
        num_heads_(problem.sizes.num_heads_kv) {}

  void run() {
    std::int64_t splits = 0;  // of the longest sequence that streams
    for (std::int64_t batch = 0; batch < problem_.sizes.batch; ++batch)
      splits = std::max(splits, num_splits(find_sequence(problem_, call_, batch)));
    if (splits == 0) return;
    const std::int64_t heads = heads_at_once(problem_.sizes.batch * splits);
    const std::int64_t parts = ceil_div(num_heads_, heads);
    parallel_for(problem_.sizes.batch * splits * parts, slices_.num_workers(),
                 [&](std::int64_t task, int worker) {
                   const std::int64_t first = task % parts * heads;
                   const Heads some{first, std::min(first + heads, num_heads_)};
                   attend_split(task / parts / splits, task / parts % splits, some, worker);
                 });
    if (splits == 1) return;
    parallel_for(problem_.sizes.batch * num_heads_, slices_.num_workers(),
                 [&](std::int64_t unit, int worker) { combine(unit, worker); });
  }

 private:
  struct Heads {
    std::int64_t begin;
    std::int64_t end;
  };

  // The rows of all heads of a key are neighbours in memory, and in a page: a task that takes them
  // together looks up each page once. Fewer only where there would be too few tasks; the bits do
  // not depend on it.
  std::int64_t heads_at_once(std::int64_t num_tasks) const {
    const std::int64_t wanted = 2 * slices_.num_workers();
    const std::int64_t heads = num_heads_ / ceil_div(wanted, num_tasks);
    return std::clamp<std::int64_t>(heads, 1, kMaxHeadsAtOnce);
  }

  KeyRange keys_seen(const Sequence& sequence) const {
    const SequenceBand band(problem_.band, sequence.seqlen_q, sequence.seqlen_k);
    return band.keys_of_any(0, sequence.seqlen_q - 1);
  }

  // 0 for a sequence that does not stream.
  std::int64_t num_splits(const Sequence& sequence) const {
    if (sequence.seqlen_q == 0 || !streams(problem_, sequence)) return 0;
    const KeyRange keys = keys_seen(sequence);
    if (keys.empty()) return 1;
    return ceil_div(keys.end - keys.begin, split_keys(problem_, keys.end - keys.begin));
  }

  TileRows rows_of(const Sequence& sequence, std::int64_t head_kv) const {
    const std::int64_t group = problem_.group_size();
    return {sequence, head_kv * group, group, 0, sequence.seqlen_q};
  }

  // The tile of one head: its part of the worker's scratch, and its sums where combine() finds
  // them.
  QueryTile tile_of(const ForwardScratch& scratch, const Sequence& sequence, std::int64_t head_kv,
                    std::int64_t split) const {
    QueryTile tile = scratch.tile;
    tile.rows_per_head = sequence.seqlen_q;
    tile.num_rows = problem_.group_size() * sequence.seqlen_q;
    tile.q += head_kv * tile.num_rows * tile.q_stride;
    tile.scores += head_kv * tile.num_rows * tile.score_stride;
    if (tile.options) tile.options += head_kv * problem_.group_size();
    float* partial = partials_ + ((sequence.batch * num_heads_ + head_kv) * max_splits_ + split) *
                                     partial_floats(problem_);
    tile.top = partial;
    tile.sum = partial + most_rows(problem_);
    tile.out = partial + 2 * most_rows(problem_);
    return tile;
  }

  void attend_split(std::int64_t batch, std::int64_t split, Heads heads, int worker) const {
    const Sequence sequence = find_sequence(problem_, call_, batch);
    const std::int64_t splits = num_splits(sequence);
    if (split >= splits) return;
    Arena arena(slices_.worker(worker));
    const ForwardScratch scratch(arena, problem_);
    for (std::int64_t head = heads.begin; head < heads.end; ++head) {
      ForwardScratch mine = scratch;
      mine.tile = tile_of(scratch, sequence, head, split);
      mine.options += head * problem_.group_size();
      mine.dropouts += head * problem_.group_size();
      begin_tile(problem_, call_, rows_of(sequence, head), mine);
      kernels().decode->begin_rows(mine.tile, storage_of(problem_.dtype));
      if (split > 0) forget_sinks(mine.tile);
      scratch.tiles[head - heads.begin] = mine.tile;
    }
    const KeyRange all = keys_seen(sequence);
    const std::int64_t size = split_keys(problem_, all.end - all.begin);
    const std::int64_t begin = all.begin + split * size;
    attend_keys(sequence, heads, {begin, std::min(begin + size, all.end)}, scratch);
    for (std::int64_t head = heads.begin; splits == 1 && head < heads.end; ++head)
      end_rows(sequence, head, scratch.tiles[head - heads.begin]);
  }

  void attend_keys(const Sequence& sequence, Heads heads, KeyRange keys,
                   const ForwardScratch& scratch) const {
    const TensorView& k = keys_of(problem_, call_);
    const TensorView& v = values_of(problem_, call_);
    const auto head_bytes = [](const TensorView& tensor) {
      return tensor.strides[tensor.rank() - 2] *
             static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
    };
    for (std::int64_t key = keys.begin; key < keys.end; key += kStreamBlock) {
      const KeyRange block{key, std::min(key + kStreamBlock, keys.end)};
      fill_pointers(problem_, call_, k, sequence, heads.begin, block, scratch.keys);
      fill_pointers(problem_, call_, v, sequence, heads.begin, block, scratch.values);
      kernels().decode->attend_rows(scratch.tiles, heads.end - heads.begin,
                                    {.first = key,
                                     .count = block.end - key,
                                     .keys = scratch.keys,
                                     .values = scratch.values,
                                     .storage = storage_of(problem_.dtype),
                                     .key_head_bytes = head_bytes(k),
                                     .value_head_bytes = head_bytes(v)});
    }
  }

  // A head's sink is counted once, in the first split.
  static void forget_sinks(const QueryTile& tile) {
    std::fill_n(tile.top, tile.num_rows, -std::numeric_limits<float>::infinity());
    std::fill_n(tile.sum, tile.num_rows, 0.0f);
  }

  void combine(std::int64_t unit, int worker) const {
    const Sequence sequence = find_sequence(problem_, call_, unit / num_heads_);
    const std::int64_t head = unit % num_heads_;
    const std::int64_t splits = num_splits(sequence);
    if (splits <= 1) return;
    Arena arena(slices_.worker(worker));
    const ForwardScratch scratch(arena, problem_);
    const QueryTile total = tile_of(scratch, sequence, head, 0);
    for (std::int64_t split = 1; split < splits; ++split)
      kernels().forward->merge(total, tile_of(scratch, sequence, head, split));
    end_rows(sequence, head, total);
  }

  void end_rows(const Sequence& sequence, std::int64_t head_kv, const QueryTile& tile) const {
    kernels().decode->end_rows(tile, storage_of(problem_.dtype));
    end_tile(problem_, call_, rows_of(sequence, head_kv), tile);
  }

  const Problem& problem_;
  const AttentionCall& call_;
  const Slices& slices_;
  float* partials_;
  std::int64_t max_splits_;
  std::int64_t num_heads_;
};

}  // namespace

std::int64_t most_rows(const Problem& problem) {
  const std::int64_t group = problem.group_size();
  if (group > kStreamRows) return 0;
  return std::min(kStreamRows / group, problem.sizes.seqlen_q) * group;
}

std::size_t stream_shared_bytes(const Problem& problem) {
  const std::int64_t units = problem.sizes.batch * problem.sizes.num_heads_kv;
  return static_cast<std::size_t>(units * most_splits(problem) * partial_floats(problem)) *
         sizeof(float);
}

void attend_streaming(const Problem& problem, const AttentionCall& call, const Slices& slices,
                      std::span<std::byte> shared) {
  if (most_rows(problem) == 0) return;
  StreamingForward(problem, call, slices, reinterpret_cast<float*>(shared.data())).run();
}

}  // namespace flashmha::cpu
