#include "attention/checks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/rules.h"
#include "attention/sequence.h"

namespace flashmha {
namespace {

constexpr std::int64_t kMaxHeadDim = 256;
// Dropout counts rows and columns in 32 bits.
constexpr std::int64_t kMaxSeqlen = std::numeric_limits<std::int32_t>::max();

void check_data_tensor(const Rules& rules, const Problem& problem, const TensorView& tensor,
                       std::string_view what) {
  rules.has_dtype(tensor, what, problem.dtype);
  rules.on_device(tensor, what, problem.device);
  rules.unit_stride(tensor, what);
  rules.has_data(tensor, what);
}

Shape query_shape(const Problem& problem, std::int64_t dim) {
  const Problem::Sizes& s = problem.sizes;
  if (problem.layout.ragged) return {s.total_q, s.num_heads_q, dim};
  return {s.batch, s.seqlen_q, s.num_heads_q, dim};
}

std::string_view query_axes(const Problem& problem) {
  return problem.layout.ragged ? "[total_q, num_heads_q, head_dim]"
                               : "[batch, seqlen_q, num_heads_q, head_dim]";
}

void check_keys(const AttentionCall& call, const Problem& problem, const Rules& rules) {
  const bool decode = problem.pass == Pass::decode;
  const TensorView& k = decode ? call.cache.k : call.k;
  const TensorView& v = decode ? call.cache.v : call.v;
  const std::string_view k_name = decode ? "cache.k" : "k";
  const std::string_view v_name = decode ? "cache.v" : "v";
  check_data_tensor(rules, problem, k, k_name);
  check_data_tensor(rules, problem, v, v_name);
  const Problem::Sizes& s = problem.sizes;
  rules.require(k.size(-1) == s.head_dim, "{} must have q's head_dim ({}); got {}", k_name,
                s.head_dim, k);
  Shape expected = k.shape;
  expected[expected.rank - 1] = s.head_dim_v;
  rules.require(v.shape == expected,
                "{} must have the sizes of {} except head_dim_v; got {} {}, {} {}", v_name, k_name,
                k_name, k.shape, v_name, v.shape);
}

void check_sizes(const AttentionCall& call, const Problem& problem, const Rules& rules) {
  const Problem::Sizes& s = problem.sizes;
  const TensorView& k = problem.pass == Pass::decode ? call.cache.k : call.k;
  rules.require(s.num_heads_q >= 1 && s.num_heads_kv >= 1,
                "num_heads must be at least 1; got q {}, k {}", call.q.shape, k.shape);
  rules.require(s.num_heads_q % s.num_heads_kv == 0,
                "num_heads_q ({}) must be a multiple of num_heads_kv ({}); got q {}, k {}",
                s.num_heads_q, s.num_heads_kv, call.q.shape, k.shape);
  rules.require(s.head_dim >= 1 && s.head_dim <= kMaxHeadDim,
                "head_dim ({}) must be in [1, {}]; got q {}", s.head_dim, kMaxHeadDim,
                call.q.shape);
  rules.require(s.head_dim_v >= 1 && s.head_dim_v <= kMaxHeadDim,
                "head_dim_v ({}) must be in [1, {}]", s.head_dim_v, kMaxHeadDim);
  rules.require(s.seqlen_q <= kMaxSeqlen && s.seqlen_k <= kMaxSeqlen,
                "sequences must be shorter than 2^31; got seqlen_q {}, seqlen_k {}", s.seqlen_q,
                s.seqlen_k);
}

void check_score_map(const TensorView& map, std::string_view what, const AttentionCall& call,
                     const Problem& problem, const Rules& rules) {
  const Problem::Sizes& s = problem.sizes;
  const Shape full{s.batch, s.num_heads_q, s.seqlen_q, s.seqlen_k};
  rules.has_rank(map, what, 4, "[batch or 1, num_heads_q or 1, seqlen_q or 1, seqlen_k or 1]");
  rules.on_device(map, what, problem.device);
  rules.has_data(map, what);
  for (int dim = 0; dim < 4; ++dim) {
    rules.require(map.shape[dim] == full[dim] || map.shape[dim] == 1,
                  "{} must be broadcastable to [batch, num_heads_q, seqlen_q, seqlen_k] = {}; "
                  "got {} for q {}",
                  what, full, map.shape, call.q.shape);
  }
}

void check_per_head(const TensorView& tensor, std::string_view what, const Problem& problem,
                    const Rules& rules) {
  rules.has_shape(tensor, what, {problem.sizes.num_heads_q}, "[num_heads_q]");
  rules.require(tensor.dtype == DType::float32 || tensor.dtype == problem.dtype,
                "{} must be float32 or {} like q; got {}", what, dtype_name(problem.dtype), tensor);
  rules.on_device(tensor, what, problem.device);
  rules.has_data(tensor, what);
}

void check_lse(const TensorView& lse, std::string_view what, const Problem& problem,
               const Rules& rules) {
  const Problem::Sizes& s = problem.sizes;
  const bool ragged = problem.layout.ragged;
  rules.has_shape(
      lse, what,
      ragged ? Shape{s.num_heads_q, s.total_q} : Shape{s.batch, s.num_heads_q, s.seqlen_q},
      ragged ? "[num_heads_q, total_q]" : "[batch, num_heads_q, seqlen_q]");
  rules.has_dtype(lse, what, statistics_dtype(problem.dtype));
  rules.on_device(lse, what, problem.device);
  rules.unit_stride(lse, what);
  rules.has_data(lse, what);
}

// cu_seqlens of a host tensor: starts at 0, never falls, ends inside the tensor, no sequence longer
// than max_seqlen. seqused, if given, lies within each sequence.
void check_lengths(const TensorView& cu_seqlens, const TensorView& seqused, std::string_view suffix,
                   std::int64_t max_seqlen, std::int64_t total, const Rules& rules) {
  const std::int64_t batch = cu_seqlens.size(0) - 1;
  rules.require(int_at(cu_seqlens, 0) == 0, "cu_seqlens_{} must start with 0; got {}", suffix,
                int_at(cu_seqlens, 0));
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t length = int_at(cu_seqlens, b + 1) - int_at(cu_seqlens, b);
    rules.require(length >= 0, "cu_seqlens_{} must never fall; sequence {} has {} then {}", suffix,
                  b, int_at(cu_seqlens, b), int_at(cu_seqlens, b + 1));
    rules.require(length <= max_seqlen,
                  "max_seqlen_{} ({}) must be at least every length; sequence {} has {}", suffix,
                  max_seqlen, b, length);
    if (!seqused.defined()) continue;
    const std::int64_t used = int_at(seqused, b);
    rules.require(used >= 0 && used <= length,
                  "seqused_{} must lie within each sequence; sequence {} has {} of {} rows", suffix,
                  b, used, length);
  }
  rules.require(int_at(cu_seqlens, batch) <= total,
                "cu_seqlens_{} ends at {}, beyond the {} rows of the tensor", suffix,
                int_at(cu_seqlens, batch), total);
}

// Every page that `length` keys of a row need must exist.
void check_pages(const TensorView& block_table, std::int64_t row, std::int64_t length,
                 std::int64_t page_size, std::int64_t num_pages, const Rules& rules) {
  const std::int64_t needed = (length + page_size - 1) / page_size;
  rules.require(needed <= block_table.size(1),
                "block_table has {} pages a row; {} keys of sequence {} need {} pages of {}",
                block_table.size(1), length, row, needed, page_size);
  for (std::int64_t i = 0; i < needed; ++i) {
    const std::int64_t page = static_cast<const std::int32_t*>(
        block_table.data)[row * block_table.strides[0] + i * block_table.strides[1]];
    rules.require(page >= 0 && page < num_pages,
                  "block_table[{}, {}] = {} is not one of the {} pages", row, i, page, num_pages);
  }
}

void check_block_table(const TensorView& block_table, const Problem& problem, const Rules& rules) {
  rules.has_rank(block_table, "block_table", 2, "[batch, max_pages]");
  rules.index_tensor(block_table, "block_table", {problem.sizes.batch, block_table.size(1)},
                     "[batch, max_pages]", problem.device);
}

void check_rotary(const AttentionCall& call, const Problem& problem, const Rules& rules) {
  const Rotary& rotary = call.append.rotary;
  const Problem::Sizes& s = problem.sizes;
  rules.has_rank(rotary.cos, "rotary.cos", 2, "[num_positions, rotary_dim / 2]");
  rules.has_shape(rotary.sin, "rotary.sin", rotary.cos.shape, "the shape of rotary.cos");
  for (const TensorView* table : {&rotary.cos, &rotary.sin}) {
    rules.require(table->dtype == DType::float32 || table->dtype == problem.dtype,
                  "rotary tables must be float32 or {} like q; got {}", dtype_name(problem.dtype),
                  *table);
    rules.on_device(*table, "rotary tables", problem.device);
    rules.unit_stride(*table, "rotary tables");
    rules.has_data(*table, "rotary tables");
  }
  rules.require(problem.layout.rotary_dim <= s.head_dim,
                "rotary_dim ({}) must not exceed head_dim ({})", problem.layout.rotary_dim,
                s.head_dim);
  const std::int64_t num_positions = rotary.cos.size(0);
  const std::int64_t rows = std::max(s.seqlen_q, problem.layout.seqlen_new);
  if (rotary.positions.defined()) {
    rules.index_tensor(rotary.positions, "rotary.positions", {s.batch, rows},
                       "[batch, max(seqlen_q, seqlen_new)]", problem.device);
  }
  if (problem.device.type != DeviceType::cpu) return;
  for (std::int64_t b = 0; b < s.batch; ++b) {
    const Sequence sequence{.batch = b};
    const std::int64_t used = problem.layout.rotary_advances || rotary.positions.defined()
                                  ? rows
                                  : std::max<std::int64_t>(1, problem.layout.seqlen_new);
    for (std::int64_t i = 0; i < used; ++i) {
      const std::int64_t position = key_position(call, sequence, i);
      rules.require(position >= 0 && position < num_positions,
                    "rotary tables have {} positions; row {} of sequence {} needs position {}",
                    num_positions, i, b, position);
    }
  }
}

void check_append(const AttentionCall& call, const Problem& problem, const Rules& rules) {
  const AppendKV& append = call.append;
  rules.require(append.k.defined() == append.v.defined(),
                "append.k and append.v must be given together; got k {}, v {}", append.k, append.v);
  if (!append.k.defined()) return;
  const Problem::Sizes& s = problem.sizes;
  const std::int64_t rows = problem.layout.seqlen_new;
  rules.has_shape(append.k, "append.k", {s.batch, rows, s.num_heads_kv, s.head_dim},
                  "[batch, seqlen_new, num_heads_kv, head_dim]");
  rules.has_shape(append.v, "append.v", {s.batch, rows, s.num_heads_kv, s.head_dim_v},
                  "[batch, seqlen_new, num_heads_kv, head_dim_v]");
  check_data_tensor(rules, problem, append.k, "append.k");
  check_data_tensor(rules, problem, append.v, "append.v");
  rules.no_overlap(call.cache.k, "cache.k");
  rules.no_overlap(call.cache.v, "cache.v");
  rules.require(call.cache.cache_seqlens.defined(),
                "cache_seqlens must be given to append keys: they say where the new keys go");
}

// Contents of cache_seqlens, cache_leftpad, cache_batch_idx and the block table.
void check_cache_contents(const AttentionCall& call, const Problem& problem, const Rules& rules) {
  const KVCacheView& cache = call.cache;
  const bool paged = problem.layout.page_size > 0;
  for (std::int64_t b = 0; b < problem.sizes.batch; ++b) {
    const std::int64_t filled =
        cache.cache_seqlens.defined() ? int_at(cache.cache_seqlens, b) : problem.sizes.seqlen_k;
    const std::int64_t total = filled + problem.layout.seqlen_new;
    rules.require(filled >= 0 && total <= problem.sizes.seqlen_k,
                  "cache_seqlens[{}] ({}) + seqlen_new ({}) must lie in [0, {}], the capacity", b,
                  filled, problem.layout.seqlen_new, problem.sizes.seqlen_k);
    if (cache.cache_leftpad.defined()) {
      const std::int64_t leftpad = int_at(cache.cache_leftpad, b);
      rules.require(leftpad >= 0 && leftpad <= total,
                    "cache_leftpad[{}] ({}) must lie in [0, {}], the filled slots", b, leftpad,
                    total);
    }
    if (paged) {
      check_pages(cache.block_table, b, total, problem.layout.page_size, cache.k.size(0), rules);
    }
    if (!cache.cache_batch_idx.defined()) continue;
    const std::int64_t row = int_at(cache.cache_batch_idx, b);
    rules.require(row >= 0 && row < cache.k.size(0),
                  "cache_batch_idx[{}] = {} is not one of the {} rows of the cache", b, row,
                  cache.k.size(0));
    for (std::int64_t other = 0; problem.layout.seqlen_new > 0 && other < b; ++other) {
      rules.require(int_at(cache.cache_batch_idx, other) != row,
                    "cache_batch_idx must not repeat when keys are appended; {} and {} are both {}",
                    other, b, row);
    }
  }
}

}  // namespace

void check_tensors(const AttentionCall& call, const Problem& problem) {
  const Rules rules(call.name);
  rules.require(is_floating(problem.dtype), "q must be float32, bfloat16 or float16; got {}",
                call.q);
  if (problem.device.type == DeviceType::cuda) {
    rules.require(
        problem.dtype == DType::bfloat16 || problem.dtype == DType::float16,
        "on a GPU q must be bfloat16 or float16; got {}. Convert q, k and v, or keep them "
        "on the CPU, where float32 is supported",
        call.q);
  }
  check_data_tensor(rules, problem, call.q, "q");
  check_keys(call, problem, rules);
  check_sizes(call, problem, rules);
  rules.has_shape(call.out, "out", query_shape(problem, problem.sizes.head_dim_v),
                  query_axes(problem));
  check_data_tensor(rules, problem, call.out, "out");
  const bool backward = problem.pass == Pass::backward;  // which reads them
  if (backward || call.lse.defined()) check_lse(call.lse, "lse", problem, rules);
  if (backward) return;
  rules.no_overlap(call.out, "out");
  if (call.lse.defined()) rules.no_overlap(call.lse, "lse");
}

void check_options(const AttentionCall& call, const Problem& problem) {
  const Rules rules(call.name);
  const AttentionOptions& options = call.options;
  rules.require(std::isfinite(problem.scores.softmax_scale), "softmax_scale must be finite; got {}",
                problem.scores.softmax_scale);
  rules.require(std::isfinite(options.softcap) && options.softcap >= 0.0f,
                "softcap must be 0 (off) or positive; got {}", options.softcap);
  rules.require(options.window_left >= -1 && options.window_right >= -1,
                "window_left and window_right must be -1 (unbounded) or more; got {} and {}",
                options.window_left, options.window_right);
  const float p = options.dropout.p;
  rules.require(p >= 0.0f && p < 1.0f, "dropout.p must be in [0, 1); got {}", p);
  rules.require(p == 0.0f || problem.pass != Pass::decode,
                "dropout is not defined for attention to a cache; got dropout.p {}", p);
  if (options.alibi_slopes.defined()) {
    const TensorView& slopes = options.alibi_slopes;
    const Problem::Sizes& s = problem.sizes;
    rules.require(
        slopes.shape == Shape{s.num_heads_q} || slopes.shape == Shape{s.batch, s.num_heads_q},
        "alibi_slopes must be [num_heads_q] or [batch, num_heads_q] for {} heads, batch "
        "{}; got {}",
        s.num_heads_q, s.batch, slopes);
    rules.has_dtype(slopes, "alibi_slopes", DType::float32);
    rules.on_device(slopes, "alibi_slopes", problem.device);
    rules.has_data(slopes, "alibi_slopes");
  }
  if (options.bias.defined()) {
    check_score_map(options.bias, "bias", call, problem, rules);
    rules.require(options.bias.dtype == DType::float32 || options.bias.dtype == problem.dtype,
                  "bias must be float32 or {} like q; got {}", dtype_name(problem.dtype),
                  options.bias);
  }
  if (options.mask.defined()) {
    check_score_map(options.mask, "mask", call, problem, rules);
    rules.has_dtype(options.mask, "mask", DType::boolean);
  }
  if (options.sinks.defined()) check_per_head(options.sinks, "sinks", problem, rules);
}

void check_sequences(const AttentionCall& call, const Problem& problem) {
  if (!problem.layout.ragged) return;
  const Rules rules(call.name);
  const Sequences& sequences = call.sequences;
  const Problem::Sizes& s = problem.sizes;
  const Shape ends{s.batch + 1};
  rules.index_tensor(sequences.cu_seqlens_q, "cu_seqlens_q", ends, "[batch + 1]", problem.device);
  rules.index_tensor(sequences.cu_seqlens_k, "cu_seqlens_k", ends, "[batch + 1]", problem.device);
  for (const auto& [used, name] : {std::pair{&sequences.seqused_q, "seqused_q"},
                                   std::pair{&sequences.seqused_k, "seqused_k"}}) {
    if (used->defined()) rules.index_tensor(*used, name, {s.batch}, "[batch]", problem.device);
  }
  rules.require(s.seqlen_q >= 0 && s.seqlen_k >= 0,
                "max_seqlen_q and max_seqlen_k must not be negative; got {} and {}", s.seqlen_q,
                s.seqlen_k);
  const bool paged = problem.layout.page_size > 0;
  if (paged) check_block_table(sequences.block_table, problem, rules);
  if (problem.device.type != DeviceType::cpu) return;
  check_lengths(sequences.cu_seqlens_q, sequences.seqused_q, "q", s.seqlen_q, s.total_q, rules);
  const std::int64_t total_k = paged ? std::numeric_limits<std::int64_t>::max() : s.total_k;
  check_lengths(sequences.cu_seqlens_k, sequences.seqused_k, "k", s.seqlen_k, total_k, rules);
  for (std::int64_t b = 0; paged && b < s.batch; ++b) {
    const std::int64_t length =
        int_at(sequences.cu_seqlens_k, b + 1) - int_at(sequences.cu_seqlens_k, b);
    check_pages(sequences.block_table, b, length, problem.layout.page_size, call.k.size(0), rules);
  }
}

void check_cache(const AttentionCall& call, const Problem& problem) {
  if (problem.pass != Pass::decode) return;
  const Rules rules(call.name);
  const KVCacheView& cache = call.cache;
  const Problem::Sizes& s = problem.sizes;
  for (const auto& [tensor, name] : {std::pair{&cache.cache_seqlens, "cache_seqlens"},
                                     std::pair{&cache.cache_leftpad, "cache_leftpad"},
                                     std::pair{&cache.cache_batch_idx, "cache_batch_idx"}}) {
    if (tensor->defined()) rules.index_tensor(*tensor, name, {s.batch}, "[batch]", problem.device);
  }
  if (problem.layout.page_size > 0) {
    check_block_table(cache.block_table, problem, rules);
    rules.require(!cache.cache_batch_idx.defined(),
                  "cache_batch_idx has no meaning with a block_table: its rows choose the pages");
  } else if (!cache.cache_batch_idx.defined()) {
    rules.require(
        cache.k.size(0) == s.batch,
        "the cache must have q's batch ({}) unless cache_batch_idx is given; got cache.k {}",
        s.batch, cache.k.shape);
  }
  rules.require(call.append.num_splits >= 0, "num_splits must not be negative; got {}",
                call.append.num_splits);
  check_append(call, problem, rules);
  if (problem.device.type == DeviceType::cpu) check_cache_contents(call, problem, rules);
  if (problem.layout.rotary_dim > 0) check_rotary(call, problem, rules);
}

void check_gradients(const AttentionCall& call, const Problem& problem) {
  if (problem.pass != Pass::backward) return;
  const Rules rules(call.name);
  rules.require(problem.layout.page_size == 0, "paged keys have no backward; got block_table {}",
                call.sequences.block_table);
  const std::string_view axes = "the shape of the tensor whose gradient it is";
  const auto given = [&](const TensorView& tensor, std::string_view what, const TensorView& of) {
    rules.has_shape(tensor, what, of.shape, axes);
    check_data_tensor(rules, problem, tensor, what);
  };
  const auto gradient = [&](const TensorView& tensor, std::string_view what, const TensorView& of) {
    given(tensor, what, of);
    rules.no_overlap(tensor, what);
  };
  given(call.dout, "dout", call.out);
  gradient(call.dq, "dq", call.q);
  gradient(call.dk, "dk", call.k);
  gradient(call.dv, "dv", call.v);
  if (call.dlse.defined()) check_lse(call.dlse, "dlse", problem, rules);
  const auto extra = [&](const TensorView& tensor, std::string_view what, const TensorView& of) {
    if (!tensor.defined()) return;
    rules.require(of.defined(), "{} is asked for, but there is no such input", what);
    rules.has_shape(tensor, what, of.shape, axes);
    rules.has_dtype(tensor, what, statistics_dtype(problem.dtype));
    rules.on_device(tensor, what, problem.device);
    rules.has_data(tensor, what);
    rules.require(tensor.is_contiguous(), "{} must be contiguous; got strides {}", what,
                  tensor.strides);
  };
  extra(call.dbias, "dbias", call.options.bias);
  extra(call.dsinks, "dsinks", call.options.sinks);
}

}  // namespace flashmha
