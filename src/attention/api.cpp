// The functions of flashmha/attention.h: allocate results and workspace, plan, run.
#include "flashmha/attention.h"

#include <functional>
#include <limits>

#include "attention/rules.h"
#include "core/allocator.h"
#include "flashmha/plan.h"

namespace flashmha {
namespace {

// Shape rules that allocation itself depends on; everything else is checked by make_problem.
void require_ranks(std::string_view name, const TensorView& q, const TensorView& v, int q_rank) {
  const Rules rules(name);
  rules.has_rank(q, "q", q_rank,
                 q_rank == 4 ? "[batch, seqlen_q, num_heads_q, head_dim]"
                             : "[total_q, num_heads_q, head_dim]");
  rules.given(v, "v");
}

AttentionResult allocate_result(const TensorView& q, std::int64_t head_dim_v, Stream stream) {
  Shape out = q.shape;
  out[out.rank - 1] = head_dim_v;
  const Shape lse =
      q.rank() == 4 ? Shape{q.size(0), q.size(2), q.size(1)} : Shape{q.size(1), q.size(0)};
  return {Tensor::empty(out, q.dtype, q.device, stream),
          Tensor::empty(lse, statistics_dtype(q.dtype), q.device, stream)};
}

// The rows of a ragged tensor that belong to no sequence: those behind the last one. Where they
// begin is not known to the host when the tensors are on a GPU: then these are all rows, to be
// filled before the launch.
std::int64_t first_unowned_row(const TensorView& cu_seqlens) {
  return cu_seqlens.device.type == DeviceType::cpu ? int_at(cu_seqlens, cu_seqlens.size(0) - 1) : 0;
}

void fill_from(const TensorView& tensor, int dim, std::int64_t first, double value, Stream stream) {
  const std::int64_t end = tensor.size(dim);
  if (first < end) fill(tensor.slice(dim, first, end), value, stream);
}

// Gives the rows that belong to nobody defined values: out and gradients 0, lse -inf.
void fill_unowned_rows(const AttentionCall& call, Pass pass, Stream stream) {
  const std::int64_t first_q = first_unowned_row(call.sequences.cu_seqlens_q);
  if (pass == Pass::forward) {
    fill_from(call.out, 0, first_q, 0.0, stream);
    if (call.lse.defined())
      fill_from(call.lse, 1, first_q, -std::numeric_limits<double>::infinity(), stream);
    return;
  }
  const std::int64_t first_k = first_unowned_row(call.sequences.cu_seqlens_k);
  fill_from(call.dq, 0, first_q, 0.0, stream);
  fill_from(call.dk, 0, first_k, 0.0, stream);
  fill_from(call.dv, 0, first_k, 0.0, stream);
}

AttentionResult forward(AttentionCall call, Stream stream) {
  AttentionResult result = allocate_result(call.q, call.v.size(-1), stream);
  call.out = result.out;
  call.lse = result.lse;
  run(call, stream);
  return result;
}

AttentionCall call_on(std::string_view name, const TensorView& q, const TensorView& k,
                      const TensorView& v, int q_rank, const AttentionOptions& options) {
  require_ranks(name, q, v, q_rank);
  AttentionCall call;
  call.q = q;
  call.k = k;
  call.v = v;
  call.options = options;
  call.name = name;
  return call;
}

AttentionCall dense_call(std::string_view name, const TensorView& q, const TensorView& k,
                         const TensorView& v, const AttentionOptions& options) {
  return call_on(name, q, k, v, 4, options);
}

AttentionCall ragged_call(std::string_view name, const TensorView& q, const TensorView& k,
                          const TensorView& v, const Sequences& sequences,
                          const AttentionOptions& options) {
  AttentionCall call = call_on(name, q, k, v, 3, options);
  const Rules rules(name);
  rules.given(sequences.cu_seqlens_q, "cu_seqlens_q");
  rules.given(sequences.cu_seqlens_k, "cu_seqlens_k");
  call.sequences = sequences;
  return call;
}

// The packed dimension of qkv or kv: the third from the right.
TensorView unpack(const TensorView& packed, std::int64_t index) {
  return packed.select(packed.rank() - 3, index);
}

void require_packed(std::string_view name, std::string_view what, const TensorView& packed,
                    int rank, std::int64_t parts) {
  const Rules rules(name);
  const std::string_view rows = rank == 5 ? "batch, seqlen" : "total";
  rules.require(packed.rank() == rank && packed.size(rank - 3) == parts,
                "{} must be [{}, {}, num_heads, head_dim]; got {}", what, rows, parts, packed);
}

AttentionGradients backward(AttentionCall call, const TensorView& dout,
                            const AttentionResult& forward, const TensorView& dlse, Stream stream) {
  const Rules rules(call.name);
  rules.given(dout, "dout");
  rules.given(call.k, "k");
  call.out = forward.out;
  call.lse = forward.lse;
  call.dout = dout;
  call.dlse = dlse;
  AttentionGradients gradients;
  const DType statistics = statistics_dtype(call.q.dtype);
  const auto like = [&](const TensorView& tensor, DType dtype) {
    return Tensor::empty(tensor.shape, dtype, tensor.device, stream);
  };
  gradients.dq = like(call.q, call.q.dtype);
  gradients.dk = like(call.k, call.k.dtype);
  gradients.dv = like(call.v, call.v.dtype);
  if (call.options.bias.defined()) gradients.dbias = like(call.options.bias, statistics);
  if (call.options.sinks.defined()) gradients.dsinks = like(call.options.sinks, statistics);
  call.dq = gradients.dq;
  call.dk = gradients.dk;
  call.dv = gradients.dv;
  call.dbias = gradients.dbias;
  call.dsinks = gradients.dsinks;
  run(call, stream);
  return gradients;
}

}  // namespace

void run(const AttentionCall& call, const WorkspaceAllocator& allocate, Stream stream) {
  const Plan plan = make_plan(call);  // throws before anything is written or cu_seqlens read
  const Problem& problem = plan.problem;
  std::span<std::byte> workspace;
  if (plan.workspace_bytes > 0) {
    workspace = {allocate(plan.workspace_bytes), plan.workspace_bytes};
    check(reinterpret_cast<std::uintptr_t>(workspace.data()) % kAlignment == 0,
          "[run] the workspace must be aligned to {} bytes", kAlignment);
  }
  const bool ragged = problem.layout.ragged;
  const bool on_gpu = problem.device.type == DeviceType::cuda;
  if (ragged && on_gpu) fill_unowned_rows(call, problem.pass, stream);
  plan.kernel->launch(problem, call, workspace, stream);
  if (ragged && !on_gpu) fill_unowned_rows(call, problem.pass, stream);
}

void run(const AttentionCall& call, Stream stream) {
  Tensor workspace;
  const auto allocate = [&](std::size_t bytes) {
    workspace =
        Tensor::empty({static_cast<std::int64_t>(bytes)}, DType::boolean, call.q.device, stream);
    return static_cast<std::byte*>(workspace.view().data);
  };
  run(call, std::ref(allocate), stream);
}

AttentionResult flash_attn_func(const TensorView& q, const TensorView& k, const TensorView& v,
                                const AttentionOptions& options, Stream stream) {
  return forward(dense_call("flash_attn_func", q, k, v, options), stream);
}

AttentionResult flash_attn_kvpacked_func(const TensorView& q, const TensorView& kv,
                                         const AttentionOptions& options, Stream stream) {
  constexpr std::string_view kName = "flash_attn_kvpacked_func";
  require_packed(kName, "kv", kv, 5, 2);
  return forward(dense_call(kName, q, unpack(kv, 0), unpack(kv, 1), options), stream);
}

AttentionResult flash_attn_qkvpacked_func(const TensorView& qkv, const AttentionOptions& options,
                                          Stream stream) {
  constexpr std::string_view kName = "flash_attn_qkvpacked_func";
  require_packed(kName, "qkv", qkv, 5, 3);
  return forward(dense_call(kName, unpack(qkv, 0), unpack(qkv, 1), unpack(qkv, 2), options),
                 stream);
}

AttentionResult flash_attn_varlen_func(const TensorView& q, const TensorView& k,
                                       const TensorView& v, const Sequences& sequences,
                                       const AttentionOptions& options, Stream stream) {
  return forward(ragged_call("flash_attn_varlen_func", q, k, v, sequences, options), stream);
}

AttentionResult flash_attn_varlen_kvpacked_func(const TensorView& q, const TensorView& kv,
                                                const Sequences& sequences,
                                                const AttentionOptions& options, Stream stream) {
  constexpr std::string_view kName = "flash_attn_varlen_kvpacked_func";
  require_packed(kName, "kv", kv, 4, 2);
  return forward(ragged_call(kName, q, unpack(kv, 0), unpack(kv, 1), sequences, options), stream);
}

AttentionResult flash_attn_varlen_qkvpacked_func(const TensorView& qkv, const Sequences& sequences,
                                                 const AttentionOptions& options, Stream stream) {
  constexpr std::string_view kName = "flash_attn_varlen_qkvpacked_func";
  require_packed(kName, "qkv", qkv, 4, 3);
  Sequences self = sequences;
  self.cu_seqlens_k = sequences.cu_seqlens_q;
  self.max_seqlen_k = sequences.max_seqlen_q;
  self.seqused_k = sequences.seqused_q;
  return forward(ragged_call(kName, unpack(qkv, 0), unpack(qkv, 1), unpack(qkv, 2), self, options),
                 stream);
}

AttentionResult flash_attn_with_kvcache(const TensorView& q, const KVCacheView& cache,
                                        const AppendKV& append, const AttentionOptions& options,
                                        Stream stream) {
  constexpr std::string_view kName = "flash_attn_with_kvcache";
  require_ranks(kName, q, cache.v, 4);
  Rules(kName).given(cache.k, "cache.k");
  AttentionResult result = allocate_result(q, cache.v.size(-1), stream);
  AttentionCall call;
  call.q = q;
  call.out = result.out;
  call.lse = result.lse;
  call.cache = cache;
  call.append = append;
  call.options = options;
  call.name = kName;
  run(call, stream);
  return result;
}

AttentionGradients flash_attn_backward(const TensorView& dout, const TensorView& q,
                                       const TensorView& k, const TensorView& v,
                                       const AttentionResult& forward,
                                       const AttentionOptions& options, const TensorView& dlse,
                                       Stream stream) {
  return backward(dense_call("flash_attn_backward", q, k, v, options), dout, forward, dlse, stream);
}

AttentionGradients flash_attn_varlen_backward(const TensorView& dout, const TensorView& q,
                                              const TensorView& k, const TensorView& v,
                                              const AttentionResult& forward,
                                              const Sequences& sequences,
                                              const AttentionOptions& options,
                                              const TensorView& dlse, Stream stream) {
  return backward(ragged_call("flash_attn_varlen_backward", q, k, v, sequences, options), dout,
                  forward, dlse, stream);
}

}  // namespace flashmha
