// Below the allocating functions of attention.h: describe a call on tensors that you own, ask which
// backend serves it and why others do not, plan once, run many times without any allocation.
//
//   AttentionCall call{.q = q, .k = k, .v = v, .out = out, .lse = lse};
//   call.options.causal = true;
//   Plan plan = make_plan(call);
//   std::span<std::byte> workspace = ...;  // plan.workspace_bytes, 64-byte aligned
//   run(plan, call, workspace);
//
// The order of every call: check -> problem -> plan -> launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashmha/attention.h"

namespace flashmha {

enum class Pass : std::uint8_t { forward, backward, decode };

// Everything that one call reads and writes. Which members are given decides its kind:
// cu_seqlens -> ragged; cache.k -> decode; dout -> backward.
struct AttentionCall {
  TensorView q, k, v;   // k and v are not given in a decode call
  TensorView out, lse;  // written by forward and decode, which may do without lse; read by
                        // backward, which needs both
  Sequences sequences;
  KVCacheView cache;
  AppendKV append;
  TensorView dout, dlse;     // read by backward; dlse may be absent
  TensorView dq, dk, dv;     // written by backward
  TensorView dbias, dsinks;  // written by backward if given
  AttentionOptions options;
  std::string_view name = "attention";  // the function that error messages name
};

// A validated, normalised problem: sizes and kinds, no pointers. Equal problems can share a plan.
struct Problem {
  struct Sizes {
    std::int64_t batch = 0;
    std::int64_t seqlen_q = 0;  // longest sequence: seqlen_q, or max_seqlen_q of a ragged batch
    std::int64_t seqlen_k = 0;  // longest: seqlen_k, max_seqlen_k, or the cache's capacity
    std::int64_t num_heads_q = 0;
    std::int64_t num_heads_kv = 0;
    std::int64_t head_dim = 0;
    std::int64_t head_dim_v = 0;
    std::int64_t total_q = 0;  // rows of q over the batch: bounds sums over ragged sequences
    std::int64_t total_k = 0;
    friend bool operator==(const Sizes&, const Sizes&) = default;
  };
  // Visible keys of query i: [i + shift - left, i + shift + right]; -1 = unbounded.
  struct Band {
    std::int64_t left = -1;
    std::int64_t right = -1;
    MaskAlign align = MaskAlign::bottom_right;
    friend bool operator==(const Band&, const Band&) = default;
  };
  // What is added to or done with the scores.
  struct Scores {
    float softmax_scale = 1.0f;
    float softcap = 0.0f;
    float dropout_p = 0.0f;
    bool alibi = false;
    bool bias = false;
    bool mask = false;
    bool sinks = false;
    friend bool operator==(const Scores&, const Scores&) = default;
  };
  // How rows are found.
  struct Layout {
    bool ragged = false;          // cu_seqlens
    bool seqused = false;         // seqused_q or seqused_k
    std::int64_t page_size = 0;   // 0: contiguous
    std::int64_t seqlen_new = 0;  // keys appended per sequence
    bool cache_batch_idx = false;
    bool leftpad = false;
    std::int64_t rotary_dim = 0;   // 0: no rotary embedding
    bool rotary_advances = false;  // query i is one position further than query i - 1
    int num_splits = 0;
    friend bool operator==(const Layout&, const Layout&) = default;
  };
  // Which optional gradients are asked for (backward only).
  struct Gradients {
    bool dlse = false;
    bool dbias = false;
    bool dsinks = false;
    bool deterministic = false;
    friend bool operator==(const Gradients&, const Gradients&) = default;
  };

  Pass pass = Pass::forward;
  Device device;
  DType dtype = DType::float32;
  Sizes sizes;
  Band band;
  Scores scores;
  Layout layout;
  Gradients gradients;

  std::int64_t group_size() const { return sizes.num_heads_q / sizes.num_heads_kv; }
  friend bool operator==(const Problem&, const Problem&) = default;
};

// One line that identifies the problem in logs and reports.
std::string describe(const Problem& problem);

// A backend's offer to serve problems of one kind. The registry lists them in order of preference.
struct KernelEntry {
  std::string_view name;  // "cpu_forward"
  // Empty if the problem is served, else the reason, e.g. "float64 is served by the reference
  // only".
  std::string (*refuse)(const Problem& problem);
  std::size_t (*workspace_bytes)(const Problem& problem);
  // `call` has passed the checks that made `problem`; the workspace is 64-byte aligned and holds
  // what workspace_bytes asked for. Neither allocates nor waits for the device.
  void (*launch)(const Problem& problem, const AttentionCall& call, std::span<std::byte> workspace,
                 Stream stream);
};

// All entries in order of preference: fast ones first, the reference last.
const std::vector<const KernelEntry*>& registry();

struct Offer {
  std::string_view kernel;
  std::string refusal;  // empty: serves the problem
};

struct Plan {
  const KernelEntry* kernel = nullptr;
  Problem problem;
  std::size_t workspace_bytes = 0;
};

// Validates a call (throws invalid_argument) and returns its problem.
Problem make_problem(const AttentionCall& call);

// What every entry of the registry says to this problem, in order.
std::vector<Offer> query(const Problem& problem);

// The first entry that serves the call. FLASHMHA_FORCE_KERNEL=<name> considers that entry alone.
// Throws unsupported with all refusals if there is none.
Plan make_plan(const AttentionCall& call);
Plan make_plan(const Problem& problem);

// Runs a plan on a call whose problem equals the plan's (else invalid_argument). workspace: at
// least plan.workspace_bytes bytes on the call's device, 64-byte aligned.
void run(const Plan& plan, const AttentionCall& call, std::span<std::byte> workspace,
         Stream stream = {});

// Plans and runs a call whose results the caller owns; allocates the workspace. Rows of a ragged
// call that belong to no sequence are written too: out and gradients 0, lse -inf.
void run(const AttentionCall& call, Stream stream = {});

// Memory of `bytes` bytes on the call's device, 64-byte aligned, that stays until what has been
// queued on the call's stream is done.
using WorkspaceAllocator = std::function<std::byte*(std::size_t bytes)>;

// The same with a workspace from somebody else's pool. `allocate` is called once, or not at all if
// no workspace is needed.
void run(const AttentionCall& call, const WorkspaceAllocator& allocate, Stream stream = {});

}  // namespace flashmha
