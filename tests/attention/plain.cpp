#include "tests/attention/plain.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>
#include <vector>

#include "core/parallel.h"
#include "flashmha/device.h"
#include "reference/head.h"
#include "reference/rotary.h"
#include "tests/attention/matrix.h"
#include "tests/compare.h"

namespace flashmha::tests {
namespace {

using reference::Head;

// One head: inputs as float matrices and what the forward leaves for the backward.
struct PlainHead {
  Head<double> head;
  DType dtype;
  Matrix q, k, v;  // k times softmax_scale, v times 1 / (1 - dropout), both rounded
  Matrix p;        // softmax, rounded
  Matrix dropped;  // p where dropout keeps it
  Matrix tanh;     // tanh(score / softcap)
  std::vector<float> lse;
  double largest_logit = 0;

  PlainHead(const Problem& problem, const AttentionCall& call, DType the_dtype, std::int64_t batch,
            std::int64_t head_q)
      : head(problem, call, batch, head_q),
        dtype(the_dtype),
        q(head.sequence.seqlen_q, problem.sizes.head_dim),
        k(head.sequence.seqlen_k, problem.sizes.head_dim),
        v(head.sequence.seqlen_k, problem.sizes.head_dim_v),
        p(q.rows, k.rows),
        dropped(q.rows, k.rows),
        tanh(q.rows, k.rows),
        lse(static_cast<std::size_t>(std::max<std::int64_t>(q.rows, 0))) {
    gather(problem, call);
    scores(problem);
    softmax();
  }

  void gather(const Problem& problem, const AttentionCall& call) {
    std::vector<double> rotated(static_cast<std::size_t>(q.columns));
    const bool rotates = problem.layout.rotary_dim > 0;
    for (std::int64_t i = 0; i < q.rows; ++i) {
      reference::rotate(call.append.rotary,
                        rotates ? query_position(problem, call, head.sequence, i) : 0,
                        head.query_row(call.q, i), q.columns, rotated.data());
      for (std::int64_t d = 0; d < q.columns; ++d)
        q(i, d) = rounded(dtype, rotated[static_cast<std::size_t>(d)]);
    }
    const float keep_scale = 1.0f / (1.0f - problem.scores.dropout_p);
    for (std::int64_t j = 0; j < k.rows; ++j) {
      for (std::int64_t d = 0; d < k.columns; ++d) {
        k(j, d) = rounded(dtype, rounded(dtype, head.key(j)[d]) * problem.scores.softmax_scale);
      }
      for (std::int64_t d = 0; d < v.columns; ++d) {
        v(j, d) = rounded(dtype, static_cast<float>(head.value(j)[d]) * keep_scale);
      }
    }
  }

  // p = scores, with cap, ALiBi and bias; -inf where hidden.
  void scores(const Problem& problem) {
    p = product(dtype, q, transposed(k));
    for (std::int64_t i = 0; i < p.rows; ++i) {
      for (std::int64_t j = 0; j < p.columns; ++j) {
        if (head.sees(i, j))
          largest_logit = std::max(largest_logit, std::abs(static_cast<double>(p(i, j))));
      }
    }
    const float softcap = problem.scores.softcap;
    for (std::int64_t i = 0; i < p.rows; ++i) {
      for (std::int64_t j = 0; j < p.columns; ++j) {
        float& score = p(i, j);
        if (softcap > 0) {
          tanh(i, j) = rounded(dtype, std::tanh(rounded(dtype, score / softcap)));
          score = rounded(dtype, tanh(i, j) * softcap);
        }
        // score(0, i, j) is what ALiBi and bias add.
        score = rounded(dtype, score + rounded(dtype, head.score(0.0, i, j)));
        if (!head.sees(i, j)) score = -INFINITY;
      }
    }
  }

  void softmax() {
    const auto sink = static_cast<float>(head.sink());
    for (std::int64_t i = 0; i < p.rows; ++i) {
      float* row = p.row(i);
      const float largest = std::accumulate(row, row + p.columns, sink,
                                            [](float a, float b) { return std::max(a, b); });
      row_softmax(i, row, largest, sink);
    }
  }

  void row_softmax(std::int64_t i, float* row, float largest, float sink) {
    float sum = largest == -INFINITY ? 0.0f : std::exp(sink - largest);
    for (std::int64_t j = 0; j < p.columns && largest > -INFINITY; ++j)
      sum += std::exp(row[j] - largest);
    lse[static_cast<std::size_t>(i)] = largest == -INFINITY ? -INFINITY : largest + std::log(sum);
    for (std::int64_t j = 0; j < p.columns; ++j) {
      row[j] = largest == -INFINITY ? 0.0f : rounded(dtype, std::exp(row[j] - largest) / sum);
      dropped(i, j) = head.dropout_scale(i, j) == 0 ? 0.0f : row[j];
    }
  }
};

void store(const Matrix& values, std::int64_t i, double* row) {
  for (std::int64_t d = 0; d < values.columns; ++d)
    row[d] = static_cast<double>(values(i, d));
}

// Gradients of the keys of one query head; the heads of a group are added afterwards. The squares
// are those of their terms.
struct KeyGradients {
  Matrix dk, dv, dk_squares, dv_squares;
};

// What the heads add to together.
struct Shared {
  std::mutex mutex;
  Terms terms;
  Tensor dbias_squares;
  Tensor dsinks_squares;
};

class BackwardHead {
 public:
  BackwardHead(const Problem& problem, const AttentionCall& call, const PlainHead& plain)
      : problem_(problem),
        call_(call),
        plain_(plain),
        dout_(plain.q.rows, problem.sizes.head_dim_v),
        weights_(plain.p.rows, plain.p.columns),
        dscore_(plain.p.rows, plain.p.columns),
        dp_sizes_(plain.p.rows, plain.p.columns) {}

  KeyGradients run(Shared& shared) {
    const DType dtype = plain_.dtype;
    for (std::int64_t i = 0; i < dout_.rows; ++i) {
      for (std::int64_t d = 0; d < dout_.columns; ++d) {
        dout_(i, d) = static_cast<float>(plain_.head.query_row(call_.dout, i)[d]);
      }
    }
    dscore_ = product(dtype, dout_, transposed(plain_.v));
    // Root of the sum of squares: |dout . v| may be small by cancellation, its error is not.
    dp_sizes_ = map(product(DType::float32, squares(dout_), transposed(squares(plain_.v))),
                    [](float sum) { return std::sqrt(sum); });
    {
      const std::lock_guard lock(shared.mutex);
      for (std::int64_t i = 0; i < dscore_.rows; ++i)
        differentiate_row(i, shared);
    }
    if (problem_.scores.softcap > 0) differentiate_cap();
    const Matrix dq = product(dtype, dscore_, plain_.k);
    for (std::int64_t i = 0; i < dq.rows; ++i)
      store(dq, i, plain_.head.query_row(call_.dq, i));
    const double dq_terms = largest(product(DType::float32, weights_, magnitudes(plain_.k)));
    {
      const std::lock_guard lock(shared.mutex);
      shared.terms.dq = std::max(shared.terms.dq, dq_terms);
    }
    return key_gradients();
  }

 private:
  // ds = p (dp - delta + dlse), and what it adds to the gradients of bias and sink.
  void differentiate_row(std::int64_t i, Shared& shared) {
    const Head<double>& head = plain_.head;
    float delta = 0;
    float delta_terms = 0;
    for (std::int64_t j = 0; j < dscore_.columns; ++j) {
      if (plain_.dropped(i, j) == 0.0f) dscore_(i, j) = dp_sizes_(i, j) = 0.0f;
      dp_sizes_(i, j) += std::abs(dscore_(i, j));
      delta += plain_.p(i, j) * dscore_(i, j);
      delta_terms += plain_.p(i, j) * dp_sizes_(i, j);
    }
    const float dlse = problem_.gradients.dlse ? static_cast<float>(head.lse(call_.dlse, i)) : 0.0f;
    const float constant = delta_terms + std::abs(dlse);
    double row_weight = 0;
    for (std::int64_t j = 0; j < dscore_.columns; ++j) {
      const float p = plain_.p(i, j);
      weights_(i, j) = p * (dp_sizes_(i, j) + constant);
      dscore_(i, j) = rounded(plain_.dtype, p * (dscore_(i, j) - delta + dlse));
      row_weight += static_cast<double>(weights_(i, j));
    }
    if (problem_.gradients.dbias) add_to_bias(i, row_weight, shared);
    if (!problem_.gradients.dsinks || head.sink() == -INFINITY) return;
    const float p = rounded(plain_.dtype, std::exp(static_cast<float>(head.sink()) -
                                                   plain_.lse[static_cast<std::size_t>(i)]));
    call_.dsinks.as<double>()[head.head] += static_cast<double>(p * (dlse - delta));
    shared.dsinks_squares.as<double>()[head.head] += std::pow(static_cast<double>(p * constant), 2);
  }

  void add_to_bias(std::int64_t i, double row_weight, Shared& shared) {
    const Head<double>& head = plain_.head;
    const ScoreMap map = score_map(call_.dbias, head.sequence, head.head);
    auto* dbias = reinterpret_cast<double*>(map.data);
    auto* squares_of =
        reinterpret_cast<double*>(score_map(shared.dbias_squares, head.sequence, head.head).data);
    for (std::int64_t j = 0; j < dscore_.columns; ++j) {
      const std::int64_t at = i * map.row_stride + j * map.column_stride;
      dbias[at] += static_cast<double>(dscore_(i, j));
      if (map.column_stride != 0)
        squares_of[at] += std::pow(static_cast<double>(weights_(i, j)), 2);
    }
    if (map.column_stride == 0) squares_of[i * map.row_stride] += row_weight * row_weight;
  }

  void differentiate_cap() {
    for (std::size_t n = 0; n < dscore_.values.size(); ++n) {
      const float tanh = plain_.tanh.values[n];
      const float slope = rounded(plain_.dtype, 1.0f - tanh * tanh);
      dscore_.values[n] = rounded(plain_.dtype, dscore_.values[n] * slope);
    }
  }

  KeyGradients key_gradients() {
    const DType dtype = plain_.dtype;
    const float softmax_scale = problem_.scores.softmax_scale;
    const float keep_scale = 1.0f / (1.0f - problem_.scores.dropout_p);
    const auto scaled_by = [dtype](float factor) {
      return [dtype, factor](float value) { return rounded(dtype, value * factor); };
    };
    const auto squared_by = [](float factor) {
      return [factor](float value) { return value * factor * factor; };
    };
    return {map(product(dtype, transposed(dscore_), plain_.q), scaled_by(softmax_scale)),
            map(product(dtype, transposed(plain_.dropped), dout_), scaled_by(keep_scale)),
            map(product(DType::float32, transposed(squares(weights_)), squares(plain_.q)),
                squared_by(softmax_scale)),
            map(product(DType::float32, transposed(squares(plain_.dropped)), squares(dout_)),
                squared_by(keep_scale))};
  }

  const Problem& problem_;
  const AttentionCall& call_;
  const PlainHead& plain_;
  Matrix dout_;
  Matrix weights_;  // p (dp + sum p dp + dlse) in sizes: those of the terms of ds
  Matrix dscore_;
  Matrix dp_sizes_;
};

// Rows behind the real ones (seqused) have gradient 0.
template <class RowOf>
void clear_rows(std::int64_t begin, std::int64_t end, std::int64_t count, RowOf row_of) {
  for (std::int64_t i = begin; i < end; ++i)
    std::fill_n(row_of(i), count, 0.0);
}

}  // namespace

Terms plain_forward(const Problem& problem, const AttentionCall& call, DType dtype) {
  const std::int64_t heads = problem.sizes.num_heads_q;
  std::mutex mutex;
  Terms terms;
  parallel_for(problem.sizes.batch * heads, num_threads(), [&](std::int64_t task, int) {
    const PlainHead plain(problem, call, dtype, task / heads, task % heads);
    const Matrix out = product(dtype, plain.dropped, plain.v);
    for (std::int64_t i = 0; i < out.rows; ++i) {
      store(out, i, plain.head.query_row(call.out, i));
      plain.head.lse(call.lse, i) = static_cast<double>(plain.lse[static_cast<std::size_t>(i)]);
    }
    clear_rows(out.rows, plain.head.sequence.allocated_q, out.columns, [&](std::int64_t i) {
      plain.head.lse(call.lse, i) = -INFINITY;
      return plain.head.query_row(call.out, i);
    });
    const double out_terms = largest(product(DType::float32, plain.dropped, magnitudes(plain.v)));
    const std::lock_guard lock(mutex);
    terms.logit = std::max(terms.logit, plain.largest_logit);
    terms.out = std::max(terms.out, out_terms);
  });
  return terms;
}

namespace {

void add(const Matrix& from, Matrix& to) {
  for (std::size_t n = 0; n < to.values.size(); ++n)
    to.values[n] += from.values[n];
}

// dk and dv of one key head: the sums over its query heads.
void backward_group(const Problem& problem, const AttentionCall& call, DType dtype,
                    std::int64_t batch, std::int64_t head_kv, Shared& shared) {
  const Problem::Sizes& sizes = problem.sizes;
  const std::int64_t first = head_kv * problem.group_size();
  const Head<double> keys(problem, call, batch, first);
  const Sequence& sequence = keys.sequence;
  const Matrix dk(sequence.seqlen_k, sizes.head_dim);
  const Matrix dv(sequence.seqlen_k, sizes.head_dim_v);
  KeyGradients sum{dk, dv, dk, dv};
  for (std::int64_t h = first; h < first + problem.group_size(); ++h) {
    const PlainHead plain(problem, call, dtype, batch, h);
    const KeyGradients part = BackwardHead(problem, call, plain).run(shared);
    add(part.dk, sum.dk);
    add(part.dv, sum.dv);
    add(part.dk_squares, sum.dk_squares);
    add(part.dv_squares, sum.dv_squares);
    clear_rows(sequence.seqlen_q, sequence.allocated_q, sizes.head_dim,
               [&](std::int64_t i) { return plain.head.query_row(call.dq, i); });
    const std::lock_guard lock(shared.mutex);
    shared.terms.logit = std::max(shared.terms.logit, plain.largest_logit);
  }
  const auto to_dtype = [dtype](float value) { return rounded(dtype, value); };
  sum.dk = map(std::move(sum.dk), to_dtype);
  sum.dv = map(std::move(sum.dv), to_dtype);
  for (std::int64_t j = 0; j < sequence.seqlen_k; ++j) {
    store(sum.dk, j, keys.key_row(call.dk, j));
    store(sum.dv, j, keys.key_row(call.dv, j));
  }
  clear_rows(sequence.seqlen_k, sequence.allocated_k, sizes.head_dim,
             [&](std::int64_t j) { return keys.key_row(call.dk, j); });
  clear_rows(sequence.seqlen_k, sequence.allocated_k, sizes.head_dim_v,
             [&](std::int64_t j) { return keys.key_row(call.dv, j); });
  const std::lock_guard lock(shared.mutex);
  shared.terms.dk = std::max(shared.terms.dk, std::sqrt(largest(sum.dk_squares)));
  shared.terms.dv = std::max(shared.terms.dv, std::sqrt(largest(sum.dv_squares)));
}

}  // namespace

Terms plain_backward(const Problem& problem, const AttentionCall& call, DType dtype) {
  const Problem::Sizes& sizes = problem.sizes;
  Shared shared;
  if (problem.gradients.dbias) {
    fill(call.dbias, 0.0);
    shared.dbias_squares = Tensor::zeros(call.dbias.shape, DType::float64);
  }
  if (problem.gradients.dsinks) {
    fill(call.dsinks, 0.0);
    shared.dsinks_squares = Tensor::zeros(call.dsinks.shape, DType::float64);
  }
  parallel_for(sizes.batch * sizes.num_heads_kv, num_threads(), [&](std::int64_t task, int) {
    backward_group(problem, call, dtype, task / sizes.num_heads_kv, task % sizes.num_heads_kv,
                   shared);
  });
  if (problem.gradients.dbias) shared.terms.dbias = std::sqrt(max_abs(shared.dbias_squares));
  if (problem.gradients.dsinks) shared.terms.dsinks = std::sqrt(max_abs(shared.dsinks_squares));
  return shared.terms;
}

}  // namespace flashmha::tests
