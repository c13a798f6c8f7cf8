// Tiled attention, host side: which blocks of queries meet which blocks of keys, on which thread.
//
// K^T and V of a head are packed once, as float panels, and shared by all blocks of its queries and
// by all heads of its group: (head_dim + head_dim_v) * 4 bytes a key of workspace. Heads are taken
// in waves that fit kWaveBytes: pack all blocks of the wave in parallel, then attend with all
// blocks of queries in parallel, the longest first.
//
// The blocks of a sequence begin at multiples of kBlockM and block_n of its own positions and are
// added up in order: bits depend neither on the batch nor on the number of threads.

#include "cpu/forward.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "core/parallel.h"
#include "cpu/isa.h"
#include "flashmha/device.h"

namespace flashmha::cpu {
namespace {

constexpr std::int64_t kWaveBytes = std::int64_t{64} << 20;

// The keys of one head of one sequence in a wave.
struct Unit {
  std::int64_t batch;
  std::int64_t head_kv;
  std::int64_t first_block;  // of the sequence: the first that a query sees
  std::int64_t num_blocks;
  std::int64_t slot;  // of the first block in the packed buffer
};

// One block of queries: some rows of some heads of a group.
struct TileTask {
  std::int32_t unit;  // index in the wave
  std::int32_t first_head;
  std::int32_t num_heads;
  std::int32_t num_rows;
  std::int64_t first_row;
  std::int64_t num_keys;  // its cost
};

std::int64_t longest_tiled_blocks(const Problem& problem, const ForwardGeometry& geometry) {
  const bool tiled = problem.sizes.seqlen_q * problem.group_size() > kStreamRows;
  return tiled ? ceil_div(problem.sizes.seqlen_k, geometry.block_n) : 0;
}

// Blocks of keys that a wave can hold.
std::int64_t wave_blocks(const Problem& problem, const ForwardGeometry& geometry) {
  const std::int64_t longest = longest_tiled_blocks(problem, geometry);
  const std::int64_t all = longest * problem.sizes.batch * problem.sizes.num_heads_kv;
  const std::int64_t bytes = (geometry.key_floats + geometry.value_floats) * 4;
  return std::min(all, std::max(longest, kWaveBytes / bytes));
}

std::int64_t most_units(const Problem& problem) {
  return problem.sizes.batch * problem.sizes.num_heads_kv;
}

std::int64_t most_tasks(const Problem& problem) {
  const Problem::Sizes& sizes = problem.sizes;
  const std::int64_t blocks = std::min(sizes.batch * ceil_div(sizes.seqlen_q, kBlockM),
                                       sizes.total_q / kBlockM + sizes.batch);
  return blocks * sizes.num_heads_q;
}

// What the workers share.
struct Shared {
  std::int64_t num_slots;
  Unit* units;
  TileTask* tasks;
  float* keys;
  float* values;
  bool* finite;
  std::span<std::byte> streaming;

  Shared(Arena& arena, const Problem& problem) {
    const ForwardGeometry geometry(problem);
    num_slots = wave_blocks(problem, geometry);
    units = arena.take<Unit>(most_units(problem));
    tasks = arena.take<TileTask>(most_tasks(problem));
    keys = arena.take<float>(num_slots * geometry.key_floats);
    values = arena.take<float>(num_slots * geometry.value_floats);
    finite = arena.take<bool>(num_slots);
    const std::size_t bytes = stream_shared_bytes(problem);
    streaming = {arena.take<std::byte>(static_cast<std::int64_t>(bytes)), bytes};
  }
};

class TiledForward {
 public:
  TiledForward(const Problem& problem, const AttentionCall& call, const Slices& slices,
               const Shared& shared)
      : problem_(problem),
        call_(call),
        slices_(slices),
        shared_(shared),
        geometry_(problem),
        kernels_(*kernels().forward) {}

  // Gathers heads into waves and runs each when the next head would not fit.
  void run() {
    for (std::int64_t batch = 0; batch < problem_.sizes.batch; ++batch) {
      const Sequence sequence = find_sequence(problem_, call_, batch);
      if (sequence.seqlen_q == 0 || streams(problem_, sequence)) continue;
      for (std::int64_t head = 0; head < problem_.sizes.num_heads_kv; ++head) {
        Unit unit = unit_of(sequence, head);
        if (num_slots_ + unit.num_blocks > shared_.num_slots) run_wave();
        unit.slot = num_slots_;
        num_slots_ += unit.num_blocks;
        shared_.units[num_units_] = unit;
        add_tasks(sequence, static_cast<std::int32_t>(num_units_++));
        if (is_enough()) run_wave();
      }
    }
    run_wave();
  }

 private:
  // Work for all workers, and no more panels than their caches hold: what has been packed is used
  // before it is forgotten.
  bool is_enough() const {
    constexpr std::int64_t kCacheBytes = 256 << 10;
    constexpr std::int64_t kTasks = 12;
    const std::int64_t workers = slices_.num_workers();
    const std::int64_t slot_bytes = (geometry_.key_floats + geometry_.value_floats) * 4;
    return num_slots_ * slot_bytes >= workers * kCacheBytes && num_tasks_ >= workers * kTasks;
  }

  SequenceBand band_of(const Sequence& sequence) const {
    return {problem_.band, sequence.seqlen_q, sequence.seqlen_k};
  }

  Unit unit_of(const Sequence& sequence, std::int64_t head_kv) const {
    const KeyRange keys = band_of(sequence).keys_of_any(0, sequence.seqlen_q - 1);
    Unit unit{sequence.batch, head_kv, 0, 0, 0};
    if (keys.empty()) return unit;
    unit.first_block = keys.begin / geometry_.block_n;
    unit.num_blocks = ceil_div(keys.end, geometry_.block_n) - unit.first_block;
    return unit;
  }

  // Few queries: several heads of the group share a tile, and the panels that it streams.
  void add_tasks(const Sequence& sequence, std::int32_t unit) {
    const std::int64_t group = problem_.group_size();
    const std::int64_t heads = std::clamp<std::int64_t>(kBlockM / sequence.seqlen_q, 1, group);
    const std::int64_t first = shared_.units[unit].head_kv * group;
    const SequenceBand band = band_of(sequence);
    for (std::int64_t row = 0; row < sequence.seqlen_q; row += kBlockM) {
      const std::int64_t rows = std::min(kBlockM, sequence.seqlen_q - row);
      const KeyRange keys = band.keys_of_any(row, row + rows - 1);
      for (std::int64_t head = 0; head < group; head += heads) {
        const std::int64_t some = std::min(heads, group - head);
        shared_.tasks[num_tasks_++] = {.unit = unit,
                                       .first_head = static_cast<std::int32_t>(first + head),
                                       .num_heads = static_cast<std::int32_t>(some),
                                       .num_rows = static_cast<std::int32_t>(rows),
                                       .first_row = row,
                                       .num_keys = (keys.end - keys.begin) * some};
      }
    }
  }

  void run_wave() {
    // A head's panels stay in the caches from one of its tiles to the next; and its shortest tiles
    // come last, so that the threads end together.
    std::sort(shared_.tasks, shared_.tasks + num_tasks_, [](const TileTask& a, const TileTask& b) {
      return a.unit != b.unit ? a.unit < b.unit : a.num_keys > b.num_keys;
    });
    parallel_for(num_slots_, slices_.num_workers(),
                 [&](std::int64_t slot, int worker) { pack(slot, worker); });
    parallel_for(num_tasks_, slices_.num_workers(),
                 [&](std::int64_t task, int worker) { attend(shared_.tasks[task], worker); });
    num_units_ = num_tasks_ = num_slots_ = 0;
  }

  void pack(std::int64_t slot, int worker) {
    const Unit& unit = *(std::upper_bound(
        shared_.units, shared_.units + num_units_, slot,
        [](std::int64_t at, const Unit& u) { return at < u.slot + u.num_blocks; }));
    const Sequence sequence = find_sequence(problem_, call_, unit.batch);
    Arena arena(slices_.worker(worker));
    ForwardScratch scratch(arena, problem_);
    const std::int64_t first = (unit.first_block + slot - unit.slot) * geometry_.block_n;
    const KeyRange keys{first, std::min(first + geometry_.block_n, sequence.seqlen_k)};
    fill_pointers(problem_, call_, keys_of(problem_, call_), sequence, unit.head_kv, keys,
                  scratch.keys);
    fill_pointers(problem_, call_, values_of(problem_, call_), sequence, unit.head_kv, keys,
                  scratch.values);
    const KeyRows rows = {first, keys.end - first, scratch.keys, scratch.values,
                          storage_of(problem_.dtype)};
    shared_.finite[slot] = kernels_.pack_keys(
        rows, problem_.sizes.head_dim, problem_.sizes.head_dim_v, geometry_.block_n,
        shared_.keys + slot * geometry_.key_floats, shared_.values + slot * geometry_.value_floats);
  }

  void attend(const TileTask& task, int worker) {
    const Unit& unit = shared_.units[task.unit];
    const TileRows rows = {find_sequence(problem_, call_, unit.batch), task.first_head,
                           task.num_heads, task.first_row, task.num_rows};
    Arena arena(slices_.worker(worker));
    ForwardScratch scratch(arena, problem_);
    begin_tile(problem_, call_, rows, scratch);
    const KeyRange keys =
        band_of(rows.sequence).keys_of_any(rows.first_row, rows.first_row + rows.num_rows - 1);
    for (std::int64_t key = keys.begin / geometry_.block_n * geometry_.block_n; key < keys.end;
         key += geometry_.block_n) {
      const std::int64_t slot = unit.slot + key / geometry_.block_n - unit.first_block;
      const KeyBlock block = {.first = key,
                              .count = std::min(geometry_.block_n, rows.sequence.seqlen_k - key),
                              .capacity = geometry_.block_n,
                              .keys = shared_.keys + slot * geometry_.key_floats,
                              .values = shared_.values + slot * geometry_.value_floats,
                              .finite = shared_.finite[slot]};
      kernels_.attend_block(scratch.tile, block);
    }
    end_tile(problem_, call_, rows, scratch.tile);
  }

  const Problem& problem_;
  const AttentionCall& call_;
  const Slices& slices_;
  const Shared& shared_;
  const ForwardGeometry geometry_;
  const ForwardKernels& kernels_;
  std::int64_t num_units_ = 0;  // of the wave
  std::int64_t num_tasks_ = 0;
  std::int64_t num_slots_ = 0;
};

// out = 0 and lse = -inf for the rows that seqused_q leaves out.
void clear_unused_rows(const Problem& problem, const AttentionCall& call) {
  for (std::int64_t batch = 0; batch < problem.sizes.batch; ++batch) {
    const Sequence sequence = find_sequence(problem, call, batch);
    const std::int64_t unused = sequence.allocated_q - sequence.seqlen_q;
    for (std::int64_t head = 0; unused > 0 && head < problem.sizes.num_heads_q; ++head) {
      const HeadRows out = query_rows(call.out, sequence, head);
      for (std::int64_t r = sequence.seqlen_q; r < sequence.allocated_q; ++r) {
        std::memset(out.row(r), 0,
                    static_cast<std::size_t>(problem.sizes.head_dim_v) * out.element_bytes);
      }
      if (!call.lse.defined()) continue;
      std::fill_n(call.lse.as<float>() + lse_offset(call.lse, sequence, head) + sequence.seqlen_q,
                  unused, -std::numeric_limits<float>::infinity());
    }
  }
}

Slices slices_of(const Problem& problem, std::span<std::byte> workspace) {
  Arena shared, worker;
  Shared{shared, problem};
  ForwardScratch{worker, problem};
  return {workspace, shared.used(), worker.used()};
}

}  // namespace

ForwardGeometry::ForwardGeometry(const Problem& problem) {
  const std::int64_t columns = kernels().tile_columns;
  block_n = std::max(problem.sizes.head_dim, problem.sizes.head_dim_v) <= 128 ? 256 : 128;
  q_stride = row_stride(problem.sizes.head_dim);
  out_stride = row_stride(problem.sizes.head_dim_v);
  score_stride = row_stride(std::max(block_n, kStreamBlock));
  key_floats = block_n * problem.sizes.head_dim;
  value_floats = block_n * pad_to(problem.sizes.head_dim_v, columns);
}

ForwardScratch::ForwardScratch(Arena& arena, const Problem& problem) : tile{} {
  const ForwardGeometry geometry(problem);
  const std::int64_t keys_at_once = std::max(geometry.block_n, kStreamBlock);
  // A streaming task keeps the queries of all heads.
  const std::int64_t num_rows = std::max(kBlockM, most_rows(problem) * problem.sizes.num_heads_kv);
  tile.head_dim = problem.sizes.head_dim;
  tile.head_dim_v = problem.sizes.head_dim_v;
  tile.q_stride = geometry.q_stride;
  tile.out_stride = geometry.out_stride;
  tile.score_stride = geometry.score_stride;
  tile.q = arena.take<float>(num_rows * geometry.q_stride);
  tile.out = arena.take<float>(kBlockM * geometry.out_stride);
  tile.top = arena.take<float>(kBlockM);
  tile.sum = arena.take<float>(kBlockM);
  tile.scores = arena.take<float>(num_rows * geometry.score_stride);
  visible = arena.take<Span>(kBlockM);
  options = arena.take<ScoreOptions>(num_rows);
  dropouts = arena.take<DropoutRows>(num_rows);
  keys = arena.take<const void*>(keys_at_once);
  values = arena.take<const void*>(keys_at_once);
  tiles = arena.take<QueryTile>(problem.sizes.num_heads_kv);
  tile.visible = visible;
  tile.options = has_score_options(problem) ? options : nullptr;
}

void begin_tile(const Problem& problem, const AttentionCall& call, const TileRows& rows,
                ForwardScratch& scratch) {
  QueryTile& tile = scratch.tile;
  const Sequence& sequence = rows.sequence;
  const SequenceBand band(problem.band, sequence.seqlen_q, sequence.seqlen_k);
  const Rotary& rotary = call.append.rotary;
  tile.num_rows = rows.num_heads * rows.num_rows;
  tile.rows_per_head = rows.num_rows;
  tile.first_row = rows.first_row;
  for (std::int64_t h = 0; h < rows.num_heads; ++h) {
    const std::int64_t head = rows.first_head + h;
    const std::int64_t at = h * rows.num_rows;
    const HeadRows q = query_rows(call.q, sequence, head);
    fill_spans(band, rows.first_row, rows.num_rows, scratch.visible + at);
    if (tile.options) {
      scratch.options[h] = score_options(problem, call, sequence, head, scratch.dropouts + h);
    }
    const float scale = problem.scores.softmax_scale;
    if (problem.layout.rotary_dim == 0) {
      kernels().forward->load_queries(tile, at, rows.num_rows, storage_of(problem.dtype),
                                      q.row(rows.first_row), q.row_stride, scale,
                                      sink_of(call, head));
      continue;
    }
    float* rotated = tile.q + at * tile.q_stride;
    for (std::int64_t r = 0; r < rows.num_rows; ++r) {
      float* row = rotated + r * tile.q_stride;
      load_row(problem.dtype, q.row(rows.first_row + r), problem.sizes.head_dim, row);
      rotate_row(rotary, query_position(problem, call, sequence, rows.first_row + r), row);
    }
    kernels().forward->load_queries(tile, at, rows.num_rows, Storage::float32, rotated,
                                    tile.q_stride, scale, sink_of(call, head));
  }
}

void end_tile(const Problem& problem, const AttentionCall& call, const TileRows& rows,
              const QueryTile& tile) {
  for (std::int64_t h = 0; h < rows.num_heads; ++h) {
    const std::int64_t head = rows.first_head + h;
    const HeadRows out = query_rows(call.out, rows.sequence, head);
    float* lse = call.lse.defined() ? call.lse.as<float>() +
                                          lse_offset(call.lse, rows.sequence, head) + rows.first_row
                                    : nullptr;
    kernels().forward->store_queries(tile, h * rows.num_rows, rows.num_rows,
                                     storage_of(problem.dtype), out.row(rows.first_row),
                                     out.row_stride, lse, dropout_scale(problem));
  }
}

std::size_t forward_workspace_bytes(const Problem& problem) {
  const Slices slices = slices_of(problem, {});
  return slices.shared_bytes + static_cast<std::size_t>(num_threads()) * slices.worker_bytes;
}

void launch_forward(const Problem& problem, const AttentionCall& call,
                    std::span<std::byte> workspace, Stream /*stream*/) {
  const Slices slices = slices_of(problem, workspace);
  Arena arena(slices.shared());
  const Shared shared(arena, problem);
  if (problem.layout.seqused) clear_unused_rows(problem, call);
  attend_streaming(problem, call, slices, shared.streaming);
  TiledForward(problem, call, slices, shared).run();
}

}  // namespace flashmha::cpu
