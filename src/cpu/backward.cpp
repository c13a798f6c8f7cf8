// Backward, host side. One task owns the gradients of one block of keys and walks over all blocks
// of queries that see it, in all heads of the group; keys are packed once, dk and dv never leave
// the task. dq of a block of queries gets one contribution from every block of keys: they are added
// in the order of the blocks, each task waiting for its predecessor at that block of queries only:
//
//   blocks of keys   0   q0 q1 q2 q3             a task does the other four products first, so in
//                    1      q0 q1 q2 q3          steady state nobody waits; the order of the sum,
//                    2         q0 q1 q2 q3       not the number of threads, fixes the bits
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
#include <cstring>
#include <thread>

#include "core/parallel.h"
#include "cpu/backward_blocks.h"
#include "flashmha/device.h"

namespace flashmha::cpu {
namespace {

constexpr std::int64_t kBlockM = kGradientBlockM;

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
  return sizes.batch * sizes.num_heads_kv * ceil_div(sizes.seqlen_k, gradient_block_n(problem));
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
        blocks_(problem, call, shared.delta),
        kernels_(blocks_.kernels) {}

  void run() {
    for_each_query_block(
        [&](const Sequence& s, std::int64_t head, std::int64_t row) { prepare(s, head, row); });
    const std::int64_t num_tasks = list_key_tasks();
    parallel_for(num_tasks, slices_.num_workers(), [&](std::int64_t task, int worker) {
      differentiate_keys(shared_.tasks[task], worker);
    });
    for_each_query_block(
        [&](const Sequence& s, std::int64_t head, std::int64_t row) { store_dq(s, head, row); });
    parallel_for(problem_.sizes.batch, slices_.num_workers(),
                 [&](std::int64_t batch, int) { clear_unused_rows(blocks_.sequence(batch)); });
    if (problem_.gradients.dsinks) store_dsinks(blocks_, slices_);
    if (problem_.gradients.dbias) store_dbias(blocks_, slices_);
  }

 private:
  // body(sequence, head, first row) for every block of queries.
  template <class Body>
  void for_each_query_block(Body body) const {
    const std::int64_t num_heads = problem_.sizes.num_heads_q;
    parallel_for(problem_.sizes.batch * num_heads, slices_.num_workers(),
                 [&](std::int64_t task, int) {
                   const Sequence sequence = blocks_.sequence(task / num_heads);
                   for (std::int64_t row = 0; row < sequence.seqlen_q; row += kBlockM)
                     body(sequence, task % num_heads, row);
                 });
  }

  void prepare(const Sequence& sequence, std::int64_t head, std::int64_t row) const {
    const std::int64_t num_rows = blocks_.rows_in(sequence, row);
    const HeadRows dout = query_rows(call_.dout, sequence, head);
    const HeadRows out = query_rows(call_.out, sequence, head);
    const float* dlse = nullptr;
    if (problem_.gradients.dlse)
      dlse = call_.dlse.as<float>() + lse_offset(call_.dlse, sequence, head) + row;
    kernels_.row_deltas(num_rows, problem_.sizes.head_dim_v, storage_of(problem_.dtype),
                        dout.row(row), dout.row_stride, out.row(row), out.row_stride, dlse,
                        blocks_.delta(sequence, head, row));
    std::fill_n(dq_of(sequence, head, row), num_rows * shared_.dq_stride, 0.0f);
    turn_of(sequence, head, row) = 0;
  }

  float* dq_of(const Sequence& sequence, std::int64_t head, std::int64_t row) const {
    return shared_.dq + blocks_.at_row(sequence, head, row) * shared_.dq_stride;
  }
  std::int32_t& turn_of(const Sequence& sequence, std::int64_t head, std::int64_t row) const {
    return shared_
        .turns[head * total_blocks(problem_) + first_block(problem_, sequence) + row / kBlockM];
  }

  // All blocks of keys, those of one sequence in increasing order. With a causal mask the early
  // blocks are the long ones.
  std::int64_t list_key_tasks() const {
    std::int64_t count = 0;
    const std::int64_t most = ceil_div(problem_.sizes.seqlen_k, blocks_.block_n);
    for (std::int64_t block = 0; block < most; ++block) {
      for (std::int64_t batch = 0; batch < problem_.sizes.batch; ++batch) {
        if (block * blocks_.block_n >= blocks_.sequence(batch).seqlen_k) continue;
        for (std::int64_t head = 0; head < problem_.sizes.num_heads_kv; ++head) {
          shared_.tasks[count++] = {static_cast<std::int32_t>(batch),
                                    static_cast<std::int32_t>(head), block};
        }
      }
    }
    return count;
  }

  void differentiate_keys(const KeyTask& task, int worker) const {
    const Sequence sequence = blocks_.sequence(task.batch);
    Arena arena(slices_.worker(worker));
    GradientScratch scratch(arena, problem_);
    blocks_.load_keys(sequence, task.head_kv, task.block, scratch);
    const std::int64_t group = problem_.group_size();
    for (std::int64_t head = task.head_kv * group; head < (task.head_kv + 1) * group; ++head) {
      for (std::int64_t row = 0; row < sequence.seqlen_q; row += kBlockM) {
        const KeyRange blocks = blocks_.key_blocks(sequence, row);
        if (task.block < blocks.begin || task.block >= blocks.end) continue;
        blocks_.load_queries(sequence, head, row, scratch);
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

  void store_keys(const Sequence& sequence, std::int64_t head_kv,
                  const GradientScratch& scratch) const {
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
    kernels_.store_rows(blocks_.rows_in(sequence, row), problem_.sizes.head_dim,
                        dq_of(sequence, head, row), shared_.dq_stride,
                        problem_.scores.softmax_scale, storage_of(problem_.dtype), dq.row(row),
                        dq.row_stride);
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

  const Problem& problem_;
  const AttentionCall& call_;
  const Slices& slices_;
  const Shared& shared_;
  const GradientBlocks blocks_;
  const BackwardKernels& kernels_;
};

Slices slices_of(const Problem& problem, std::span<std::byte> workspace) {
  Arena shared, worker;
  Shared{shared, problem};
  GradientScratch{worker, problem};
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
