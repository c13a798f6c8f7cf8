// out_i = sum_j p_ij z_ij v_j and lse_i = log(exp(sink) + sum_j exp(s_ij)), one query row after the
// other. See head.h for the terms.
#include <algorithm>
#include <array>

#include "core/parallel.h"
#include "flashmha/device.h"
#include "reference/head.h"
#include "reference/passes.h"
#include "reference/rotary.h"

namespace flashmha::reference {
namespace {

// exp(s_ij - lse_i); a row that sees nothing has lse -inf and takes part in nothing.
double probability(double score, double lse) {
  return lse == -INFINITY ? 0 : std::exp(score - lse);
}

// Fills scores[j] = s_ij, -inf where query i does not see key j.
template <class T>
void score_row(const Problem& problem, const AttentionCall& call, const Head<T>& head,
               std::int64_t i, double* scores) {
  const std::int64_t head_dim = problem.sizes.head_dim;
  const auto softmax_scale = static_cast<double>(problem.scores.softmax_scale);
  std::array<double, kMaxHeadDim> query;
  const bool rotated = problem.layout.rotary_dim > 0;
  rotate(call.append.rotary, rotated ? query_position(problem, call, head.sequence, i) : 0,
         head.query_row(call.q, i), head_dim, query.data());
  for (std::int64_t j = 0; j < head.sequence.seqlen_k; ++j) {
    scores[j] = -INFINITY;
    if (!head.sees(i, j)) continue;
    const double x = softmax_scale * dot(query.data(), head.key(j), head_dim);
    scores[j] = head.score(x, i, j);
  }
}

// log(exp(sink) + sum_j exp(scores[j])), with the largest term taken out so that nothing overflows.
double log_sum_exp(double sink, std::span<const double> scores) {
  double largest = sink;
  for (const double score : scores) {
    if (score > largest || std::isnan(score)) largest = score;  // a NaN stays
  }
  if (largest == -INFINITY) return -INFINITY;
  double sum = std::exp(sink - largest);
  for (const double score : scores)
    sum += std::exp(score - largest);
  return largest + std::log(sum);
}

template <class T>
void forward_row(const Problem& problem, const AttentionCall& call, const Head<T>& head,
                 std::int64_t i, double* scores) {
  const std::int64_t head_dim_v = problem.sizes.head_dim_v;
  const std::int64_t seqlen_k = head.sequence.seqlen_k;
  score_row(problem, call, head, i, scores);
  const double lse = log_sum_exp(
      head.sink(), {scores, static_cast<std::size_t>(std::max<std::int64_t>(seqlen_k, 0))});
  std::array<double, kMaxHeadDim> sum{};
  for (std::int64_t j = 0; j < seqlen_k; ++j) {
    if (!head.sees(i, j)) continue;  // not even a NaN of a hidden value reaches the row
    const double weight = probability(scores[j], lse) * head.dropout_scale(i, j);
    add_scaled(weight, head.value(j), head_dim_v, sum.data());
  }
  store_row(sum.data(), head_dim_v, head.query_row(call.out, i));
  if (call.lse.defined()) head.lse(call.lse, i) = static_cast<Wide<T>>(lse);
}

// Rows behind a sequence's real queries (seqused_q): 0 and -inf.
template <class T>
void clear_row(const Problem& problem, const AttentionCall& call, const Head<T>& head,
               std::int64_t i) {
  std::fill_n(head.query_row(call.out, i), problem.sizes.head_dim_v, T{});
  if (call.lse.defined()) head.lse(call.lse, i) = -std::numeric_limits<Wide<T>>::infinity();
}

std::size_t scratch_bytes(const Problem& problem) {
  return static_cast<std::size_t>(std::max<std::int64_t>(problem.sizes.seqlen_k, 1)) *
         sizeof(double);
}

}  // namespace

std::size_t forward_workspace_bytes(const Problem& problem) {
  return static_cast<std::size_t>(num_threads()) * scratch_bytes(problem);
}

template <class T>
void forward(const Problem& problem, const AttentionCall& call, std::span<std::byte> workspace) {
  const std::int64_t num_heads = problem.sizes.num_heads_q;
  const auto num_workers = static_cast<int>(workspace.size() / scratch_bytes(problem));
  parallel_for(problem.sizes.batch * num_heads, num_workers, [&](std::int64_t task, int worker) {
    const Head<T> head(problem, call, task / num_heads, task % num_heads);
    auto* scores = reinterpret_cast<double*>(workspace.data() + static_cast<std::size_t>(worker) *
                                                                    scratch_bytes(problem));
    for (std::int64_t i = 0; i < head.sequence.seqlen_q; ++i) {
      forward_row(problem, call, head, i, scores);
    }
    for (std::int64_t i = head.sequence.seqlen_q; i < head.sequence.allocated_q; ++i) {
      clear_row(problem, call, head, i);
    }
  });
}

// The appended keys are the last seqlen_new keys of each sequence.
template <class T>
void append_kv(const Problem& problem, const AttentionCall& call) {
  const std::int64_t head_dim = problem.sizes.head_dim;
  for (std::int64_t b = 0; b < problem.sizes.batch; ++b) {
    const Sequence sequence = find_sequence(problem, call, b);
    for (std::int64_t h = 0; h < problem.sizes.num_heads_kv; ++h) {
      for (std::int64_t i = 0; i < problem.layout.seqlen_new; ++i) {
        const std::int64_t j = sequence.seqlen_k - problem.layout.seqlen_new + i;
        const auto slot = [&](const TensorView& cache) {
          return reinterpret_cast<T*>(
              find_keys(problem, call, cache, sequence, h, j, 1).rows.row(0));
        };
        const T* k = call.append.k.select(0, b).select(0, i).select(0, h).template as<T>();
        const T* v = call.append.v.select(0, b).select(0, i).select(0, h).template as<T>();
        const bool rotated = problem.layout.rotary_dim > 0;
        std::array<double, kMaxHeadDim> key;
        rotate(call.append.rotary, rotated ? key_position(call, sequence, i) : 0, k, head_dim,
               key.data());
        store_row(key.data(), head_dim, slot(call.cache.k));
        std::copy_n(v, problem.sizes.head_dim_v, slot(call.cache.v));
      }
    }
  }
}

template void forward<float>(const Problem&, const AttentionCall&, std::span<std::byte>);
template void forward<BFloat16>(const Problem&, const AttentionCall&, std::span<std::byte>);
template void forward<Float16>(const Problem&, const AttentionCall&, std::span<std::byte>);
template void forward<double>(const Problem&, const AttentionCall&, std::span<std::byte>);
template void append_kv<float>(const Problem&, const AttentionCall&);
template void append_kv<BFloat16>(const Problem&, const AttentionCall&);
template void append_kv<Float16>(const Problem&, const AttentionCall&);
template void append_kv<double>(const Problem&, const AttentionCall&);

}  // namespace flashmha::reference
