// From a call to its problem: which kind it is, its sizes, its mask in normal form.
#include <algorithm>
#include <cmath>

#include "attention/checks.h"
#include "attention/rules.h"

namespace flashmha {
namespace {

Pass pass_of(const AttentionCall& call) {
  if (call.dout.defined()) return Pass::backward;
  return call.cache.k.defined() ? Pass::decode : Pass::forward;
}

// Ranks first: everything after may index shapes.
void check_ranks(const AttentionCall& call, Pass pass, bool ragged, bool paged) {
  const Rules rules(call.name);
  rules.require(!call.dout.defined() || !call.cache.k.defined(),
                "attention to a cache has no backward; got dout {}, cache.k {}", call.dout,
                call.cache.k);
  if (pass == Pass::decode) {
    const std::string_view cache_axes = paged ? "[num_pages, page_size, num_heads_kv, head_dim]"
                                              : "[batch, capacity, num_heads_kv, head_dim]";
    rules.has_rank(call.q, "q", 4, "[batch, seqlen_q, num_heads_q, head_dim]");
    rules.has_rank(call.cache.k, "cache.k", 4, cache_axes);
    rules.has_rank(call.cache.v, "cache.v", 4, cache_axes);
    rules.require(!ragged, "a cache and cu_seqlens exclude each other; got cache.k {}",
                  call.cache.k);
  } else if (ragged) {
    const std::string_view key_axes = paged ? "[num_pages, page_size, num_heads_kv, head_dim]"
                                            : "[total_k, num_heads_kv, head_dim]";
    rules.has_rank(call.q, "q", 3, "[total_q, num_heads_q, head_dim]");
    rules.has_rank(call.k, "k", paged ? 4 : 3, key_axes);
    rules.has_rank(call.v, "v", paged ? 4 : 3, key_axes);
    rules.has_rank(call.sequences.cu_seqlens_q, "cu_seqlens_q", 1, "[batch + 1]");
    rules.has_rank(call.sequences.cu_seqlens_k, "cu_seqlens_k", 1, "[batch + 1]");
    rules.require(call.sequences.cu_seqlens_q.size(0) >= 1,
                  "cu_seqlens_q needs at least one element; got {}", call.sequences.cu_seqlens_q);
  } else {
    rules.has_rank(call.q, "q", 4, "[batch, seqlen_q, num_heads_q, head_dim]");
    rules.has_rank(call.k, "k", 4, "[batch, seqlen_k, num_heads_kv, head_dim]");
    rules.has_rank(call.v, "v", 4, "[batch, seqlen_k, num_heads_kv, head_dim_v]");
    rules.require(call.k.size(0) == call.q.size(0), "k must have q's batch; got q {}, k {}",
                  call.q.shape, call.k.shape);
    rules.require(!paged, "block_table needs cu_seqlens_q and cu_seqlens_k");
  }
}

Problem::Sizes sizes_of(const AttentionCall& call, const Problem& problem) {
  const bool decode = problem.pass == Pass::decode;
  const bool paged = problem.layout.page_size > 0;
  const TensorView& k = decode ? call.cache.k : call.k;
  const TensorView& v = decode ? call.cache.v : call.v;
  Problem::Sizes sizes;
  sizes.num_heads_q = call.q.size(-2);
  sizes.head_dim = call.q.size(-1);
  sizes.num_heads_kv = k.size(-2);
  sizes.head_dim_v = v.size(-1);
  if (problem.layout.ragged) {
    sizes.batch = call.sequences.cu_seqlens_q.size(0) - 1;
    sizes.seqlen_q = call.sequences.max_seqlen_q;
    sizes.seqlen_k = call.sequences.max_seqlen_k;
    sizes.total_q = call.q.size(0);
    sizes.total_k = paged ? k.size(0) * k.size(1) : k.size(0);
    return sizes;
  }
  sizes.batch = call.q.size(0);
  sizes.seqlen_q = call.q.size(1);
  const TensorView& table = call.cache.block_table;
  sizes.seqlen_k = paged && table.rank() == 2 ? table.size(1) * k.size(1) : k.size(1);
  const bool overflow = __builtin_mul_overflow(sizes.batch, sizes.seqlen_q, &sizes.total_q) ||
                        __builtin_mul_overflow(sizes.batch, sizes.seqlen_k, &sizes.total_k);
  Rules(call.name).require(!overflow, "batch times seqlen must be below 2^63; got q {}, k {}",
                           call.q.shape, k.shape);
  return sizes;
}

// The band in normal form: bounds that no row of any sequence up to these lengths can reach become
// -1, so that a problem without an effective mask is seen to have none.
Problem::Band band_of(const AttentionOptions& options, const Problem::Sizes& sizes) {
  Problem::Band band{options.window_left, options.window_right, options.align};
  if (options.causal) band.right = 0;
  const bool bottom_right = band.align == MaskAlign::bottom_right;
  // The last row looks back furthest, the first row forward; see SequenceBand.
  const std::int64_t furthest_left = (bottom_right ? sizes.seqlen_k : sizes.seqlen_q) - 1;
  const std::int64_t furthest_right = (bottom_right ? sizes.seqlen_q : sizes.seqlen_k) - 1;
  if (band.left >= furthest_left) band.left = -1;
  if (band.right >= furthest_right) band.right = -1;
  if (band.left < 0 && band.right < 0) band.align = MaskAlign::bottom_right;
  return band;
}

Problem::Layout layout_of(const AttentionCall& call, Pass pass) {
  const bool decode = pass == Pass::decode;
  const TensorView& table = decode ? call.cache.block_table : call.sequences.block_table;
  const TensorView& pages = decode ? call.cache.k : call.k;
  const AttentionOptions& options = call.options;
  Problem::Layout layout;
  layout.ragged = call.sequences.cu_seqlens_q.defined() || call.sequences.cu_seqlens_k.defined();
  layout.seqused = call.sequences.seqused_q.defined() || call.sequences.seqused_k.defined();
  if (table.defined() && pages.rank() == 4) layout.page_size = pages.size(1);
  if (!decode) return layout;
  const AppendKV& append = call.append;
  if (append.k.rank() == 4) layout.seqlen_new = append.k.size(1);
  layout.cache_batch_idx = call.cache.cache_batch_idx.defined();
  layout.leftpad = call.cache.cache_leftpad.defined();
  layout.rotary_dim = append.rotary.cos.rank() == 2 ? 2 * append.rotary.cos.size(1) : 0;
  layout.rotary_advances = options.causal || options.window_left >= 0 || options.window_right >= 0;
  layout.num_splits = append.num_splits;
  return layout;
}

}  // namespace

Problem make_problem(const AttentionCall& call) {
  const Rules rules(call.name);
  const AttentionOptions& options = call.options;
  Problem problem;
  problem.pass = pass_of(call);
  problem.device = call.q.device;
  problem.dtype = call.q.dtype;
  problem.layout = layout_of(call, problem.pass);
  const bool decode = problem.pass == Pass::decode;
  const TensorView& table = decode ? call.cache.block_table : call.sequences.block_table;
  check_ranks(call, problem.pass, problem.layout.ragged, table.defined());
  rules.require(!table.defined() || problem.layout.page_size > 0,
                "pages must hold at least one key; got {}", decode ? call.cache.k : call.k);
  rules.require(!decode || !call.append.rotary.sin.defined() || call.append.rotary.cos.defined(),
                "rotary.cos and rotary.sin must be given together");

  problem.sizes = sizes_of(call, problem);
  const auto head_dim = static_cast<double>(std::max<std::int64_t>(problem.sizes.head_dim, 1));
  problem.scores = {.softmax_scale = options.softmax_scale.value_or(
                        static_cast<float>(1.0 / std::sqrt(head_dim))),
                    .softcap = options.softcap,
                    .dropout_p = options.dropout.p,
                    .alibi = options.alibi_slopes.defined(),
                    .bias = options.bias.defined(),
                    .mask = options.mask.defined(),
                    .sinks = options.sinks.defined()};
  problem.gradients = {.dlse = call.dlse.defined(),
                       .dbias = call.dbias.defined(),
                       .dsinks = call.dsinks.defined(),
                       .deterministic = problem.pass == Pass::backward && options.deterministic};
  check_tensors(call, problem);
  check_options(call, problem);
  problem.band = band_of(options, problem.sizes);
  check_sequences(call, problem);
  check_cache(call, problem);
  check_gradients(call, problem);
  return problem;
}

std::string describe(const Problem& problem) {
  const Problem::Sizes& s = problem.sizes;
  const char* pass = problem.pass == Pass::forward    ? "forward"
                     : problem.pass == Pass::backward ? "backward"
                                                      : "decode";
  std::string text = fmt::format(
      "{} {} on {}: batch {}, seqlen_q {}, seqlen_k {}, heads {}/{}, head_dim {}/{}, scale {:.6g}",
      pass, dtype_name(problem.dtype), device_name(problem.device), s.batch, s.seqlen_q, s.seqlen_k,
      s.num_heads_q, s.num_heads_kv, s.head_dim, s.head_dim_v, problem.scores.softmax_scale);
  const Problem::Band& band = problem.band;
  if (band.left >= 0 || band.right >= 0) {
    text += fmt::format(", window [{}, {}] {}", band.left, band.right,
                        band.align == MaskAlign::bottom_right ? "bottom_right" : "top_left");
  }
  if (problem.scores.softcap > 0) text += fmt::format(", softcap {:.6g}", problem.scores.softcap);
  if (problem.scores.dropout_p > 0)
    text += fmt::format(", dropout {:.6g}", problem.scores.dropout_p);
  const Problem::Layout& layout = problem.layout;
  if (layout.page_size > 0) text += fmt::format(", pages of {}", layout.page_size);
  if (layout.seqlen_new > 0) text += fmt::format(", append {}", layout.seqlen_new);
  if (layout.rotary_dim > 0) text += fmt::format(", rotary {}", layout.rotary_dim);
  for (const auto& [present, name] :
       {std::pair{problem.scores.alibi, ", alibi"}, std::pair{problem.scores.bias, ", bias"},
        std::pair{problem.scores.mask, ", mask"}, std::pair{problem.scores.sinks, ", sinks"},
        std::pair{layout.ragged, ", ragged"}, std::pair{layout.seqused, ", seqused"},
        std::pair{layout.cache_batch_idx, ", cache_batch_idx"},
        std::pair{layout.leftpad, ", leftpad"}, std::pair{problem.gradients.dlse, ", dlse"},
        std::pair{problem.gradients.dbias, ", dbias"},
        std::pair{problem.gradients.dsinks, ", dsinks"},
        std::pair{problem.gradients.deterministic, ", deterministic"}}) {
    if (present) text += name;
  }
  return text;
}

}  // namespace flashmha
