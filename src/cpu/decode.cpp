// Streaming attention, host side: sequences with so few queries that reading keys and values from
// memory is what takes the time. The keys of each head are cut into splits that are summed
// independently (Dao 2023, "Flash-Decoding") and added up exactly, in order.
//
// A split holds kSplitKeys keys, or what num_splits asks for: either way it depends on the
// sequence's own length alone, so that bits depend neither on the batch nor on the number of
// threads. Where one split holds all keys, it writes the result itself.

#include <algorithm>

#include "core/parallel.h"
#include "cpu/forward.h"
#include "cpu/isa.h"

namespace flashmha::cpu {
namespace {

constexpr std::int64_t kSplitKeys = 1024;

std::int64_t most_rows(const Problem& problem) {
  const std::int64_t group = problem.group_size();
  if (group > kStreamRows) return 0;
  return std::min(kStreamRows / group, problem.sizes.seqlen_q) * group;
}

std::int64_t split_keys(const Problem& problem, std::int64_t num_keys) {
  if (problem.layout.num_splits == 0) return kSplitKeys;
  const std::int64_t keys = ceil_div(num_keys, problem.layout.num_splits);
  return pad_to(std::max<std::int64_t>(keys, 1), kStreamBlock);
}

std::int64_t most_splits(const Problem& problem) {
  return ceil_div(problem.sizes.seqlen_k, split_keys(problem, problem.sizes.seqlen_k)) + 1;
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
        num_units_(problem.sizes.batch * problem.sizes.num_heads_kv) {}

  void run() {
    std::int64_t splits = 0;  // of the longest sequence that streams
    for (std::int64_t batch = 0; batch < problem_.sizes.batch; ++batch)
      splits = std::max(splits, num_splits(find_sequence(problem_, call_, batch)));
    if (splits == 0) return;
    parallel_for(num_units_ * splits, slices_.num_workers(), [&](std::int64_t task, int worker) {
      attend_split(task / splits, task % splits, worker);
    });
    if (splits == 1) return;
    parallel_for(num_units_, slices_.num_workers(),
                 [&](std::int64_t unit, int worker) { combine(unit, worker); });
  }

 private:
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

  Sequence sequence_of(std::int64_t unit) const {
    return find_sequence(problem_, call_, unit / problem_.sizes.num_heads_kv);
  }

  TileRows rows_of(const Sequence& sequence, std::int64_t unit) const {
    const std::int64_t group = problem_.group_size();
    return {sequence, unit % problem_.sizes.num_heads_kv * group, group, 0, sequence.seqlen_q};
  }

  // Lets a tile keep its sums where combine() finds them.
  void place_sums(std::int64_t unit, std::int64_t split, QueryTile& tile) const {
    float* partial = partials_ + (unit * max_splits_ + split) * partial_floats(problem_);
    tile.top = partial;
    tile.sum = partial + most_rows(problem_);
    tile.out = partial + 2 * most_rows(problem_);
  }

  void attend_split(std::int64_t unit, std::int64_t split, int worker) const {
    const Sequence sequence = sequence_of(unit);
    const std::int64_t splits = num_splits(sequence);
    if (split >= splits) return;
    Arena arena(slices_.worker(worker));
    ForwardScratch scratch(arena, problem_);
    if (splits > 1) place_sums(unit, split, scratch.tile);
    const TileRows rows = rows_of(sequence, unit);
    begin_tile(problem_, call_, rows, scratch);
    // A head's sink is counted once.
    if (split > 0) forget_sinks(scratch.tile);

    const KeyRange all = keys_seen(sequence);
    const std::int64_t size = split_keys(problem_, all.end - all.begin);
    const std::int64_t begin = all.begin + split * size;
    attend(sequence, unit, {begin, std::min(begin + size, all.end)}, scratch);
    if (splits == 1) end_tile(problem_, call_, rows, scratch.tile);
  }

  void attend(const Sequence& sequence, std::int64_t unit, KeyRange keys,
              ForwardScratch& scratch) const {
    const std::int64_t head = unit % problem_.sizes.num_heads_kv;
    for (std::int64_t key = keys.begin; key < keys.end; key += kStreamBlock) {
      const KeyRange block{key, std::min(key + kStreamBlock, keys.end)};
      fill_pointers(problem_, call_, keys_of(problem_, call_), sequence, head, block, scratch.keys);
      fill_pointers(problem_, call_, values_of(problem_, call_), sequence, head, block,
                    scratch.values);
      kernels().decode->attend_rows(scratch.tile, {key, block.end - key, scratch.keys,
                                                   scratch.values, storage_of(problem_.dtype)});
    }
  }

  static void forget_sinks(const QueryTile& tile) {
    std::fill_n(tile.top, tile.num_rows, -std::numeric_limits<float>::infinity());
    std::fill_n(tile.sum, tile.num_rows, 0.0f);
  }

  void combine(std::int64_t unit, int worker) const {
    const Sequence sequence = sequence_of(unit);
    const std::int64_t splits = num_splits(sequence);
    if (splits <= 1) return;
    Arena arena(slices_.worker(worker));
    ForwardScratch scratch(arena, problem_);
    const TileRows rows = rows_of(sequence, unit);
    QueryTile total = scratch.tile;
    total.rows_per_head = rows.num_rows;
    total.num_rows = rows.num_heads * rows.num_rows;
    place_sums(unit, 0, total);
    for (std::int64_t split = 1; split < splits; ++split) {
      QueryTile part = total;
      place_sums(unit, split, part);
      kernels().forward->merge(total, part);
    }
    end_tile(problem_, call_, rows, total);
  }

  const Problem& problem_;
  const AttentionCall& call_;
  const Slices& slices_;
  float* partials_;
  std::int64_t max_splits_;
  std::int64_t num_units_;
};

}  // namespace

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
