// Gradients as sums over the pairs (i, j) in which an element takes part. With the terms of head.h,
// and D_i = dout_i . out_i = sum_j p_ij z_ij (dout_i . v_j):
//
//   ds_ij = p_ij (z_ij dout_i . v_j - D_i + dlse_i)      dx_ij = ds_ij (1 - tanh^2(x_ij / softcap))
//   dq_i  = softmax_scale sum_j dx_ij k_j                dk_j  = softmax_scale sum_i dx_ij q_i
//   dv_j  = sum_i p_ij z_ij dout_i
//   dsink = sum_i exp(sink - lse_i) (dlse_i - D_i)
//   dbias = sum of the ds_ij that read the element
//
// (Dao 2022, "FlashAttention", appendix B.2, with dropout, lse, bias and sink added.) lse and out
// are the caller's, so that partial results of a longer sequence can be differentiated too.
#include <algorithm>
#include <array>

#include "core/parallel.h"
#include "flashmha/device.h"
#include "reference/head.h"
#include "reference/passes.h"

namespace flashmha::reference {
namespace {

// One head with the gradients that flow into it.
template <class T>
struct BackwardHead : Head<T> {
  const Problem& problem;
  const AttentionCall& call;

  BackwardHead(const Problem& the_problem, const AttentionCall& the_call, std::int64_t batch,
               std::int64_t head_q)
      : Head<T>(the_problem, the_call, batch, head_q), problem(the_problem), call(the_call) {}

  const T* q(std::int64_t i) const { return this->query_row(call.q, i); }
  const T* dout(std::int64_t i) const { return this->query_row(call.dout, i); }

  // What the loss gains per unit of a row's lse: dlse_i - D_i.
  double row_gradient(std::int64_t i) const {
    const double dlse = problem.gradients.dlse ? static_cast<double>(this->lse(call.dlse, i)) : 0.0;
    return dlse - dot(dout(i), this->query_row(call.out, i), problem.sizes.head_dim_v);
  }
};

// The terms of one pair (i, j).
struct Pair {
  double pz = 0;  // p_ij z_ij
  double ds = 0;
  double dx = 0;
};

template <class T>
Pair differentiate(const BackwardHead<T>& head, std::int64_t i, std::int64_t j,
                   double row_gradient) {
  const auto lse = static_cast<double>(head.lse(head.call.lse, i));
  if (!head.sees(i, j) || lse == -INFINITY) return {};
  const Problem::Sizes& sizes = head.problem.sizes;
  const double x = static_cast<double>(head.problem.scores.softmax_scale) *
                   dot(head.q(i), head.key(j), sizes.head_dim);
  const double p = std::exp(head.score(x, i, j) - lse);
  const double z = head.dropout_scale(i, j);
  const double dp = z * dot(head.dout(i), head.value(j), sizes.head_dim_v);
  const double ds = p * (dp + row_gradient);
  return {.pz = p * z, .ds = ds, .dx = ds * head.score_slope(x)};
}

template <class T>
void query_gradients(const BackwardHead<T>& head) {
  const std::int64_t head_dim = head.problem.sizes.head_dim;
  const auto softmax_scale = static_cast<double>(head.problem.scores.softmax_scale);
  for (std::int64_t i = 0; i < head.sequence.allocated_q; ++i) {
    std::array<double, kMaxHeadDim> dq{};
    if (i < head.sequence.seqlen_q) {
      const double row_gradient = head.row_gradient(i);
      for (std::int64_t j = 0; j < head.sequence.seqlen_k; ++j) {
        if (!head.sees(i, j)) continue;
        const Pair pair = differentiate(head, i, j, row_gradient);
        add_scaled(softmax_scale * pair.dx, head.key(j), head_dim, dq.data());
      }
    }
    store_row(dq.data(), head_dim, head.query_row(head.call.dq, i));
  }
}

// dk and dv of one key head: sums over the query heads of its group.
template <class T>
void key_gradients(const Problem& problem, const AttentionCall& call, std::int64_t batch,
                   std::int64_t head_kv) {
  const Problem::Sizes& sizes = problem.sizes;
  const auto softmax_scale = static_cast<double>(problem.scores.softmax_scale);
  const std::int64_t first_head = head_kv * problem.group_size();
  const BackwardHead<T> first(problem, call, batch, first_head);
  for (std::int64_t j = 0; j < first.sequence.allocated_k; ++j) {
    std::array<double, kMaxHeadDim> dk{};
    std::array<double, kMaxHeadDim> dv{};
    for (std::int64_t h = first_head; h < first_head + problem.group_size(); ++h) {
      const BackwardHead<T> head(problem, call, batch, h);
      for (std::int64_t i = 0; i < head.sequence.seqlen_q; ++i) {
        if (j >= head.sequence.seqlen_k || !head.sees(i, j)) continue;
        const Pair pair = differentiate(head, i, j, head.row_gradient(i));
        add_scaled(softmax_scale * pair.dx, head.q(i), sizes.head_dim, dk.data());
        add_scaled(pair.pz, head.dout(i), sizes.head_dim_v, dv.data());
      }
    }
    store_row(dk.data(), sizes.head_dim, first.key_row(call.dk, j));
    store_row(dv.data(), sizes.head_dim_v, first.key_row(call.dv, j));
  }
}

// Indices that element `index` of a possibly broadcast dimension stands for, below `limit`.
KeyRange readers(std::int64_t size, std::int64_t index, std::int64_t limit) {
  if (size == 1) return {0, limit};
  return {index, std::min(index + 1, limit)};
}

// One row [b, h, i, :] of dbias: each element is the sum of the ds of all pairs that read it.
template <class T>
void bias_gradients(const Problem& problem, const AttentionCall& call, std::int64_t row) {
  const TensorView& dbias = call.dbias;
  const std::int64_t at_i = row % dbias.size(2);
  const std::int64_t at_h = row / dbias.size(2) % dbias.size(1);
  const std::int64_t at_b = row / dbias.size(2) / dbias.size(1);
  const TensorView out = dbias.select(0, at_b).select(0, at_h).select(0, at_i);
  for (std::int64_t at_j = 0; at_j < dbias.size(3); ++at_j) {
    double sum = 0;
    const KeyRange batches = readers(dbias.size(0), at_b, problem.sizes.batch);
    const KeyRange heads = readers(dbias.size(1), at_h, problem.sizes.num_heads_q);
    for (std::int64_t b = batches.begin; b < batches.end; ++b) {
      for (std::int64_t h = heads.begin; h < heads.end; ++h) {
        const BackwardHead<T> head(problem, call, b, h);
        const KeyRange queries = readers(dbias.size(2), at_i, head.sequence.seqlen_q);
        const KeyRange keys = readers(dbias.size(3), at_j, head.sequence.seqlen_k);
        for (std::int64_t i = queries.begin; i < queries.end; ++i) {
          for (std::int64_t j = keys.begin; j < keys.end; ++j) {
            sum += differentiate(head, i, j, head.row_gradient(i)).ds;
          }
        }
      }
    }
    out.as<Wide<T>>()[at_j * out.stride(0)] = static_cast<Wide<T>>(sum);
  }
}

template <class T>
void sink_gradient(const Problem& problem, const AttentionCall& call, std::int64_t h) {
  double sum = 0;
  for (std::int64_t b = 0; b < problem.sizes.batch; ++b) {
    const BackwardHead<T> head(problem, call, b, h);
    if (head.sink() == -INFINITY) continue;
    for (std::int64_t i = 0; i < head.sequence.seqlen_q; ++i) {
      const auto lse = static_cast<double>(head.lse(call.lse, i));
      sum += std::exp(head.sink() - lse) * head.row_gradient(i);
    }
  }
  call.dsinks.as<Wide<T>>()[h * call.dsinks.stride(0)] = static_cast<Wide<T>>(sum);
}

}  // namespace

template <class T>
void backward(const Problem& problem, const AttentionCall& call) {
  const Problem::Sizes& sizes = problem.sizes;
  const auto for_each = [](std::int64_t count, auto body) {
    parallel_for(count, num_threads(), [&](std::int64_t task, int) { body(task); });
  };
  for_each(sizes.batch * sizes.num_heads_q, [&](std::int64_t task) {
    query_gradients(
        BackwardHead<T>(problem, call, task / sizes.num_heads_q, task % sizes.num_heads_q));
  });
  for_each(sizes.batch * sizes.num_heads_kv, [&](std::int64_t task) {
    key_gradients<T>(problem, call, task / sizes.num_heads_kv, task % sizes.num_heads_kv);
  });
  if (problem.gradients.dbias) {
    for_each(call.dbias.size(0) * call.dbias.size(1) * call.dbias.size(2),
             [&](std::int64_t row) { bias_gradients<T>(problem, call, row); });
  }
  if (problem.gradients.dsinks) {
    for_each(sizes.num_heads_q, [&](std::int64_t h) { sink_gradient<T>(problem, call, h); });
  }
}

template void backward<float>(const Problem&, const AttentionCall&);
template void backward<BFloat16>(const Problem&, const AttentionCall&);
template void backward<Float16>(const Problem&, const AttentionCall&);
template void backward<double>(const Problem&, const AttentionCall&);

}  // namespace flashmha::reference
