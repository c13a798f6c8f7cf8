// Backward, host side. One task owns the gradients of one block of keys and walks over all blocks
// of queries that see it, in all heads of the group; keys are packed once, dk and dv never leave
// the task. dq of a block of queries gets one contribution from every block of keys: they are added
// in the order of the blocks, each task waiting for its predecessor at that block of queries only:
//
//   blocks of keys   0   q0 q1 q2 q3             a task does the other four products first, so in
//                    1      q0 q1 q2 q3          steady state nobody waits; it is the order of the
//                    2         q0 q1 q2 q3       sum, not the number of threads, that fixes the
//                    bits
//
// Five products a pair, no second pass, and float sums of dq in the workspace: 4 bytes times
// total_q * num_heads_q * head_dim. Tasks are handed out in increasing order, so a task that waits
// always waits for one that some thread is running.
//
// Steps: deltas (and dq = 0); blocks of keys; dq to its dtype; then the small gradients of sinks
// and of the bias. A bias gradient is made apart from the rest, one task for each block of its own
// elements, because a broadcast bias sums over what the tasks above do in parallel.

#include "cpu/backward.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "core/parallel.h"
#include "cpu/attention_host.h"
#include "cpu/isa.h"
#include "flashmha/device.h"

namespace flashmha::cpu {
namespace {

constexpr std::int64_t kBlockM = 96;  // queries

// Blocks of keys: a multiple of the tiles' height and of their width.
std::int64_t block_n_of(const Problem& problem) {
  return std::max(problem.sizes.head_dim, problem.sizes.head_dim_v) <= 128 ? 192 : 96;
}

std::int64_t total_rows(const Problem& problem) {
  return problem.layout.ragged ? problem.sizes.total_q
                               : problem.sizes.batch * problem.sizes.seqlen_q;
}
std::int64_t total_blocks(const Problem& problem) {
  return total_rows(problem) / kBlockM + problem.sizes.batch;
}

// A block of keys of one head of one sequence.
struct KeyTask {
  std::int32_t batch;
  std::int32_t head_kv;
  std::int64_t block;
};

std::int64_t most_tasks(const Problem& problem) {
  const Problem::Sizes& sizes = problem.sizes;
  return sizes.batch * sizes.num_heads_kv * ceil_div(sizes.seqlen_k, block_n_of(problem));
}

// What the workers share.
struct Shared {
  std::int64_t dq_stride;
  float* dq;            // [num_heads_q, total_rows, dq_stride]
  float* delta;         // [num_heads_q, total_rows]
  std::int32_t* turns;  // [num_heads_q, total_blocks]: contributions that dq has received
  KeyTask* tasks;

  Shared(Arena& arena, const Problem& problem)
      : dq_stride(row_stride(problem.sizes.head_dim)),
        dq(arena.take<float>(problem.sizes.num_heads_q * total_rows(problem) * dq_stride)),
        delta(arena.take<float>(problem.sizes.num_heads_q * total_rows(problem))),
        turns(arena.take<std::int32_t>(problem.sizes.num_heads_q * total_blocks(problem))),
        tasks(arena.take<KeyTask>(most_tasks(problem))) {}
};

// What one worker needs.
struct Scratch {
  GradientKeys keys{};
  GradientTile tile{};
  Span* visible;
  ScoreOptions options{};
  DropoutRows* dropout;
  const void** key_pointers;
  const void** value_pointers;

  Scratch(Arena& arena, const Problem& problem) {
    const std::int64_t block_n = block_n_of(problem);
    const std::int64_t head_dim = problem.sizes.head_dim;
    const std::int64_t head_dim_v = problem.sizes.head_dim_v;
    const std::int64_t padded = pad_to(block_n, kernels().tile_columns);
    keys.key_stride = row_stride(head_dim);
    keys.value_stride = row_stride(head_dim_v);
    keys.keys_transposed = arena.take<float>(padded * head_dim);
    keys.values_transposed = arena.take<float>(padded * head_dim_v);
    keys.keys = arena.take<float>(block_n * keys.key_stride);
    keys.dk = arena.take<float>(block_n * keys.key_stride);
    keys.dv = arena.take<float>(block_n * keys.value_stride);
    tile.head_dim = head_dim;
    tile.head_dim_v = head_dim_v;
    tile.q_stride = row_stride(head_dim);
    tile.dout_stride = row_stride(head_dim_v);
    tile.score_stride = row_stride(block_n);
    tile.dropout_scale = dropout_scale(problem);
    tile.q = arena.take<float>(kBlockM * tile.q_stride);
    tile.dout = arena.take<float>(kBlockM * tile.dout_stride);
    tile.p = arena.take<float>(kBlockM * tile.score_stride);
    tile.ds = arena.take<float>(kBlockM * tile.score_stride);
    const bool softcap = problem.scores.softcap > 0.0f;
    tile.slope = arena.take<float>(softcap ? kBlockM * tile.score_stride : 0);
    if (!softcap) tile.slope = nullptr;
    visible = arena.take<Span>(kBlockM);
    dropout = arena.take<DropoutRows>(1);
    key_pointers = arena.take<const void*>(block_n);
    value_pointers = arena.take<const void*>(block_n);
    tile.visible = visible;
  }
};

// The row of a sequence's query 0 among all rows, and the same for blocks of queries.
std::int64_t first_row(const Problem& problem, const Sequence& sequence) {
  return problem.layout.ragged ? sequence.first_row_q : sequence.batch * problem.sizes.seqlen_q;
}
std::int64_t first_block(const Problem& problem, const Sequence& sequence) {
  return first_row(problem, sequence) / kBlockM + sequence.batch;
}

class Backward {
 public:
  Backward(const Problem& problem, const AttentionCall& call, const Slices& slices,
           const Shared& shared)
      : problem_(problem),
        call_(call),
        slices_(slices),
        shared_(shared),
        block_n_(block_n_of(problem)),
        kernels_(*kernels().backward) {}

  void run() {
    const std::int64_t num_heads = problem_.sizes.num_heads_q;
    const std::int64_t num_sequences = problem_.sizes.batch;
    for_each_query_block(
        [&](const Sequence& s, std::int64_t head, std::int64_t row) { prepare(s, head, row); });
    const std::int64_t num_tasks = list_key_tasks();
    parallel_for(num_tasks, slices_.num_workers(), [&](std::int64_t task, int worker) {
      differentiate_keys(shared_.tasks[task], worker);
    });
    for_each_query_block(
        [&](const Sequence& s, std::int64_t head, std::int64_t row) { store_dq(s, head, row); });
    parallel_for(num_sequences, slices_.num_workers(),
                 [&](std::int64_t batch, int) { clear_unused_rows(sequence_of(batch)); });
    if (problem_.gradients.dsinks) {
      parallel_for(num_heads, slices_.num_workers(),
                   [&](std::int64_t head, int) { store_dsink(head); });
    }
    if (problem_.gradients.dbias) differentiate_bias();
  }

 private:
  Sequence sequence_of(std::int64_t batch) const { return find_sequence(problem_, call_, batch); }

  SequenceBand band_of(const Sequence& sequence) const {
    return {problem_.band, sequence.seqlen_q, sequence.seqlen_k};
  }

  std::int64_t at_row(const Sequence& sequence, std::int64_t head, std::int64_t row) const {
    return head * total_rows(problem_) + first_row(problem_, sequence) + row;
  }

  std::int64_t rows_in(const Sequence& sequence, std::int64_t row) const {
    return std::min(kBlockM, sequence.seqlen_q - row);
  }

  // body(sequence, head, first row) for every block of queries.
  template <class Body>
  void for_each_query_block(Body body) const {
    const std::int64_t num_heads = problem_.sizes.num_heads_q;
    parallel_for(problem_.sizes.batch * num_heads, slices_.num_workers(),
                 [&](std::int64_t task, int) {
                   const Sequence sequence = sequence_of(task / num_heads);
                   for (std::int64_t row = 0; row < sequence.seqlen_q; row += kBlockM)
                     body(sequence, task % num_heads, row);
                 });
  }

  void prepare(const Sequence& sequence, std::int64_t head, std::int64_t row) const {
    const std::int64_t num_rows = rows_in(sequence, row);
    const HeadRows dout = query_rows(call_.dout, sequence, head);
    const HeadRows out = query_rows(call_.out, sequence, head);
    const float* dlse = nullptr;
    if (problem_.gradients.dlse)
      dlse = call_.dlse.as<float>() + lse_offset(call_.dlse, sequence, head) + row;
    kernels_.row_deltas(num_rows, problem_.sizes.head_dim_v, storage_of(problem_.dtype),
                        dout.row(row), dout.row_stride, out.row(row), out.row_stride, dlse,
                        shared_.delta + at_row(sequence, head, row));
    std::fill_n(dq_of(sequence, head, row), num_rows * shared_.dq_stride, 0.0f);
    turn_of(sequence, head, row) = 0;
  }

  float* dq_of(const Sequence& sequence, std::int64_t head, std::int64_t row) const {
    return shared_.dq + at_row(sequence, head, row) * shared_.dq_stride;
  }
  std::int32_t& turn_of(const Sequence& sequence, std::int64_t head, std::int64_t row) const {
    return shared_
        .turns[head * total_blocks(problem_) + first_block(problem_, sequence) + row / kBlockM];
  }

  // All blocks of keys, those of one sequence in increasing order. With a causal mask the early
  // blocks are the long ones.
  std::int64_t list_key_tasks() const {
    std::int64_t count = 0;
    const std::int64_t most = ceil_div(problem_.sizes.seqlen_k, block_n_);
    for (std::int64_t block = 0; block < most; ++block) {
      for (std::int64_t batch = 0; batch < problem_.sizes.batch; ++batch) {
        if (block * block_n_ >= sequence_of(batch).seqlen_k) continue;
        for (std::int64_t head = 0; head < problem_.sizes.num_heads_kv; ++head) {
          shared_.tasks[count++] = {static_cast<std::int32_t>(batch),
                                    static_cast<std::int32_t>(head), block};
        }
      }
    }
    return count;
  }

  // Blocks of keys that a block of queries sees some of.
  KeyRange key_blocks(const Sequence& sequence, std::int64_t row) const {
    const KeyRange keys = band_of(sequence).keys_of_any(row, row + rows_in(sequence, row) - 1);
    if (keys.empty()) return {};
    return {keys.begin / block_n_, ceil_div(keys.end, block_n_)};
  }

  void load_keys(const Sequence& sequence, std::int64_t head_kv, std::int64_t block,
                 Scratch& scratch) const {
    const std::int64_t first = block * block_n_;
    const KeyRange keys{first, std::min(first + block_n_, sequence.seqlen_k)};
    scratch.keys.first = first;
    scratch.keys.count = keys.end - first;
    fill_pointers(problem_, call_, call_.k, sequence, head_kv, keys, scratch.key_pointers);
    fill_pointers(problem_, call_, call_.v, sequence, head_kv, keys, scratch.value_pointers);
    kernels_.load_keys(scratch.keys,
                       {first, scratch.keys.count, scratch.key_pointers, scratch.value_pointers,
                        storage_of(problem_.dtype)},
                       problem_.sizes.head_dim, problem_.sizes.head_dim_v);
  }

  void load_queries(const Sequence& sequence, std::int64_t head, std::int64_t row,
                    Scratch& scratch) const {
    GradientTile& tile = scratch.tile;
    tile.num_rows = rows_in(sequence, row);
    tile.first_row = row;
    tile.lse = call_.lse.as<float>() + lse_offset(call_.lse, sequence, head) + row;
    tile.delta = shared_.delta + at_row(sequence, head, row);
    tile.options = nullptr;
    if (has_score_options(problem_)) {
      scratch.options = score_options(problem_, call_, sequence, head, scratch.dropout);
      tile.options = &scratch.options;
    }
    fill_spans(band_of(sequence), row, tile.num_rows, scratch.visible);
    for (std::int64_t r = 0; r < tile.num_rows; ++r) {
      if (tile.lse[r] == -std::numeric_limits<float>::infinity()) scratch.visible[r] = {0, 0};
    }
    const HeadRows q = query_rows(call_.q, sequence, head);
    const HeadRows dout = query_rows(call_.dout, sequence, head);
    kernels_.load_queries(tile, storage_of(problem_.dtype), q.row(row), q.row_stride, dout.row(row),
                          dout.row_stride, problem_.scores.softmax_scale);
  }

  void differentiate_keys(const KeyTask& task, int worker) const {
    const Sequence sequence = sequence_of(task.batch);
    Arena arena(slices_.worker(worker));
    Scratch scratch(arena, problem_);
    load_keys(sequence, task.head_kv, task.block, scratch);
    const std::int64_t group = problem_.group_size();
    for (std::int64_t head = task.head_kv * group; head < (task.head_kv + 1) * group; ++head) {
      for (std::int64_t row = 0; row < sequence.seqlen_q; row += kBlockM) {
        const KeyRange blocks = key_blocks(sequence, row);
        if (task.block < blocks.begin || task.block >= blocks.end) continue;
        load_queries(sequence, head, row, scratch);
        kernels_.differentiate(scratch.tile, scratch.keys);
        kernels_.add_key_gradients(scratch.tile, scratch.keys);
        const std::atomic_ref turn(turn_of(sequence, head, row));
        wait_for(turn, static_cast<std::int32_t>(task.block - blocks.begin));
        kernels_.add_query_gradients(scratch.tile, scratch.keys, dq_of(sequence, head, row),
                                     shared_.dq_stride);
        turn.fetch_add(1, std::memory_order_release);
      }
    }
    store_keys(sequence, task.head_kv, scratch);
  }

  static void wait_for(const std::atomic_ref<std::int32_t>& turn, std::int32_t mine) {
    constexpr int kSpins = 1000;
    for (int spins = 0; turn.load(std::memory_order_acquire) != mine; ++spins) {
      if (spins > kSpins) std::this_thread::yield();
    }
  }

  void store_keys(const Sequence& sequence, std::int64_t head_kv, const Scratch& scratch) const {
    const GradientKeys& keys = scratch.keys;
    const Storage storage = storage_of(problem_.dtype);
    const HeadRows dk = key_rows(call_.dk, sequence, head_kv);
    const HeadRows dv = key_rows(call_.dv, sequence, head_kv);
    // Queries were scaled when they were loaded, so dk is complete; ds was not, so dq is not.
    kernels_.store_rows(keys.count, problem_.sizes.head_dim, keys.dk, keys.key_stride, 1.0f,
                        storage, dk.row(keys.first), dk.row_stride);
    kernels_.store_rows(keys.count, problem_.sizes.head_dim_v, keys.dv, keys.value_stride,
                        dropout_scale(problem_), storage, dv.row(keys.first), dv.row_stride);
  }

  void store_dq(const Sequence& sequence, std::int64_t head, std::int64_t row) const {
    const HeadRows dq = query_rows(call_.dq, sequence, head);
    kernels_.store_rows(rows_in(sequence, row), problem_.sizes.head_dim, dq_of(sequence, head, row),
                        shared_.dq_stride, problem_.scores.softmax_scale,
                        storage_of(problem_.dtype), dq.row(row), dq.row_stride);
  }

  // Gradients of rows that no sequence uses are 0.
  void clear_unused_rows(const Sequence& sequence) const {
    const auto clear = [](const HeadRows& rows, KeyRange range, std::int64_t num_columns) {
      for (std::int64_t r = range.begin; r < range.end; ++r)
        std::memset(rows.row(r), 0, static_cast<std::size_t>(num_columns) * rows.element_bytes);
    };
    for (std::int64_t head = 0; head < problem_.sizes.num_heads_q; ++head) {
      clear(query_rows(call_.dq, sequence, head), {sequence.seqlen_q, sequence.allocated_q},
            problem_.sizes.head_dim);
    }
    const KeyRange keys{sequence.seqlen_k, sequence.allocated_k};
    for (std::int64_t head = 0; head < problem_.sizes.num_heads_kv; ++head) {
      clear(key_rows(call_.dk, sequence, head), keys, problem_.sizes.head_dim);
      clear(key_rows(call_.dv, sequence, head), keys, problem_.sizes.head_dim_v);
    }
  }

  // dsink = - sum over rows of exp(sink - lse) delta
  void store_dsink(std::int64_t head) const {
    const auto sink = static_cast<double>(sink_of(call_, head));
    double sum = 0.0;
    for (std::int64_t batch = 0; sink != -INFINITY && batch < problem_.sizes.batch; ++batch) {
      const Sequence sequence = sequence_of(batch);
      const float* lse = call_.lse.as<float>() + lse_offset(call_.lse, sequence, head);
      const float* delta = shared_.delta + at_row(sequence, head, 0);
      for (std::int64_t row = 0; row < sequence.seqlen_q; ++row) {
        sum -= std::exp(sink - static_cast<double>(lse[row])) * static_cast<double>(delta[row]);
      }
    }
    call_.dsinks.as<float>()[head * call_.dsinks.stride(0)] = static_cast<float>(sum);
  }

  // ---- bias ----

  // A dimension of the bias: the task's block of its elements, and what stands for them.
  struct Axis {
    bool broadcast;
    std::int64_t block;  // elements of a task; unused if broadcast

    std::int64_t num_tasks(std::int64_t size) const {
      return broadcast ? 1 : ceil_div(size, block);
    }
    // Positions below `limit` that task `index` sums over.
    KeyRange readers(std::int64_t index, std::int64_t limit) const {
      if (broadcast) return {0, limit};
      return {std::min(index * block, limit), std::min((index + 1) * block, limit)};
    }
  };

  void differentiate_bias() const {
    const TensorView& dbias = call_.dbias;
    const Axis batches{dbias.size(0) == 1, 1};
    const Axis heads{dbias.size(1) == 1, 1};
    const Axis rows{dbias.size(2) == 1, kBlockM};
    const Axis columns{dbias.size(3) == 1, block_n_};
    const std::int64_t num_columns = columns.num_tasks(dbias.size(3));
    const std::int64_t num_rows = rows.num_tasks(dbias.size(2));
    const std::int64_t num_heads = heads.num_tasks(dbias.size(1));
    const std::int64_t num_tasks =
        batches.num_tasks(dbias.size(0)) * num_heads * num_rows * num_columns;
    std::fill_n(dbias.as<float>(), dbias.numel(), 0.0f);
    parallel_for(num_tasks, slices_.num_workers(), [&](std::int64_t task, int worker) {
      Arena arena(slices_.worker(worker));
      Scratch scratch(arena, problem_);
      scratch.tile.slope = nullptr;  // the bias is added after the softcap
      const std::int64_t column = task % num_columns;
      const std::int64_t row = task / num_columns % num_rows;
      const std::int64_t head = task / num_columns / num_rows % num_heads;
      const std::int64_t batch = task / num_columns / num_rows / num_heads;
      const KeyRange read_batches = batches.readers(batch, problem_.sizes.batch);
      const KeyRange read_heads = heads.readers(head, problem_.sizes.num_heads_q);
      float* out = dbias.select(0, batch).select(0, head).as<float>();
      for (std::int64_t b = read_batches.begin; b < read_batches.end; ++b) {
        const Sequence sequence = sequence_of(b);
        for (std::int64_t h = read_heads.begin; h < read_heads.end; ++h) {
          add_bias_gradient(sequence, h, rows.readers(row, sequence.seqlen_q),
                            columns.readers(column, sequence.seqlen_k), out, scratch);
        }
      }
    });
  }

  // out[i, j] += ds of the pairs of one head. out is the matrix of the bias that the head reads.
  void add_bias_gradient(const Sequence& sequence, std::int64_t head, KeyRange rows,
                         KeyRange columns, float* out, Scratch& scratch) const {
    const std::int64_t row_step = call_.dbias.size(2) == 1 ? 0 : call_.dbias.stride(2);
    const std::int64_t column_step = call_.dbias.size(3) == 1 ? 0 : 1;
    for (std::int64_t key = columns.begin; key < columns.end; key += block_n_) {
      const std::int64_t block = key / block_n_;
      load_keys(sequence, head / problem_.group_size(), block, scratch);
      for (std::int64_t row = rows.begin; row < rows.end; row += kBlockM) {
        const KeyRange blocks = key_blocks(sequence, row);
        if (block < blocks.begin || block >= blocks.end) continue;
        load_queries(sequence, head, row, scratch);
        kernels_.differentiate(scratch.tile, scratch.keys);
        kernels_.add_bias_gradient(scratch.tile, scratch.keys,
                                   out + row * row_step + key * column_step, row_step, column_step);
      }
    }
  }

  const Problem& problem_;
  const AttentionCall& call_;
  const Slices& slices_;
  const Shared& shared_;
  const std::int64_t block_n_;
  const BackwardKernels& kernels_;
};

Slices slices_of(const Problem& problem, std::span<std::byte> workspace) {
  Arena shared, worker;
  Shared{shared, problem};
  Scratch{worker, problem};
  return {workspace, shared.used(), worker.used()};
}

}  // namespace

std::size_t backward_workspace_bytes(const Problem& problem) {
  const Slices slices = slices_of(problem, {});
  return slices.shared_bytes + static_cast<std::size_t>(num_threads()) * slices.worker_bytes;
}

void launch_backward(const Problem& problem, const AttentionCall& call,
                     std::span<std::byte> workspace, Stream /*stream*/) {
  const Slices slices = slices_of(problem, workspace);
  Arena arena(slices.shared());
  const Shared shared(arena, problem);
  Backward(problem, call, slices, shared).run();
}

}  // namespace flashmha::cpu
