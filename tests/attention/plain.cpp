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

namespace flashmha::tests {
namespace {

using reference::Head;

float rounded(DType dtype, float value) {
  if (dtype == DType::bfloat16) return static_cast<float>(BFloat16(value));
  if (dtype == DType::float16) return static_cast<float>(Float16(value));
  return value;
}
float rounded(DType dtype, double value) {
  return rounded(dtype, static_cast<float>(value));
}

struct Matrix {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<float> values;

  Matrix(std::int64_t num_rows, std::int64_t num_columns)
      : rows(num_rows), columns(num_columns), values(static_cast<std::size_t>(rows * columns)) {}
  float& operator()(std::int64_t i, std::int64_t j) {
    return values[static_cast<std::size_t>(i * columns + j)];
  }
  float operator()(std::int64_t i, std::int64_t j) const {
    return values[static_cast<std::size_t>(i * columns + j)];
  }
  float* row(std::int64_t i) { return values.data() + i * columns; }
  const float* row(std::int64_t i) const { return values.data() + i * columns; }
};

Matrix transposed(const Matrix& a) {
  Matrix result(a.columns, a.rows);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.columns; ++j)
      result(j, i) = a(i, j);
  }
  return result;
}

// a b, sums in float, the result rounded. Zeros of a are skipped: hidden keys may be poisoned.
Matrix product(DType dtype, const Matrix& a, const Matrix& b) {
  Matrix result(a.rows, b.columns);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t k = 0; k < a.columns; ++k) {
      const float factor = a(i, k);
      if (factor == 0.0f) continue;
      const float* from = b.row(k);
      float* to = result.row(i);
      for (std::int64_t j = 0; j < b.columns; ++j)
        to[j] += factor * from[j];
    }
    for (std::int64_t j = 0; j < b.columns; ++j)
      result(i, j) = rounded(dtype, result(i, j));
  }
  return result;
}

// One head: inputs as float matrices and what the forward leaves for the backward.
struct PlainHead {
  Head<double> head;
  DType dtype;
  Matrix q, k, v;  // k times softmax_scale, v times 1 / (1 - dropout), both rounded
  Matrix p;        // softmax, rounded
  Matrix dropped;  // p where dropout keeps it
  Matrix tanh;     // tanh(score / softcap)
  std::vector<float> lse;

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

// Gradients of the keys of one query head; the heads of a group are added afterwards.
struct KeyGradients {
  Matrix dk, dv;
};

KeyGradients backward_head(const Problem& problem, const AttentionCall& call,
                           const PlainHead& plain, std::mutex& mutex) {
  const DType dtype = plain.dtype;
  const Head<double>& head = plain.head;
  Matrix dout(plain.q.rows, problem.sizes.head_dim_v);
  for (std::int64_t i = 0; i < dout.rows; ++i) {
    for (std::int64_t d = 0; d < dout.columns; ++d) {
      dout(i, d) = static_cast<float>(head.query_row(call.dout, i)[d]);
    }
  }
  Matrix dv = product(dtype, transposed(plain.dropped), dout);
  const float keep_scale = 1.0f / (1.0f - problem.scores.dropout_p);
  for (float& value : dv.values)
    value = rounded(dtype, value * keep_scale);

  Matrix dscore = product(dtype, dout, transposed(plain.v));
  double dsink = 0;
  for (std::int64_t i = 0; i < dscore.rows; ++i) {
    float delta = 0;
    for (std::int64_t j = 0; j < dscore.columns; ++j) {
      if (plain.dropped(i, j) == 0.0f) dscore(i, j) = 0.0f;
      delta += plain.p(i, j) * dscore(i, j);
    }
    const float dlse = problem.gradients.dlse ? static_cast<float>(head.lse(call.dlse, i)) : 0.0f;
    for (std::int64_t j = 0; j < dscore.columns; ++j) {
      dscore(i, j) = rounded(dtype, plain.p(i, j) * (dscore(i, j) - delta + dlse));
    }
    if (head.sink() > -INFINITY) {
      const auto sink = static_cast<float>(head.sink());
      const float p = rounded(dtype, std::exp(sink - plain.lse[static_cast<std::size_t>(i)]));
      dsink += static_cast<double>(p * (dlse - delta));
    }
  }
  {
    const std::lock_guard lock(mutex);
    if (problem.gradients.dsinks) call.dsinks.as<double>()[head.head] += dsink;
    for (std::int64_t i = 0; problem.gradients.dbias && i < dscore.rows; ++i) {
      const ScoreMap map = score_map(call.dbias, head.sequence, head.head);
      auto* dbias = reinterpret_cast<double*>(map.data);
      for (std::int64_t j = 0; j < dscore.columns; ++j) {
        dbias[i * map.row_stride + j * map.column_stride] += static_cast<double>(dscore(i, j));
      }
    }
  }
  for (std::size_t n = 0; problem.scores.softcap > 0 && n < dscore.values.size(); ++n) {
    const float slope = rounded(dtype, 1.0f - plain.tanh.values[n] * plain.tanh.values[n]);
    dscore.values[n] = rounded(dtype, dscore.values[n] * slope);
  }
  const Matrix dq = product(dtype, dscore, plain.k);
  for (std::int64_t i = 0; i < dq.rows; ++i)
    store(dq, i, head.query_row(call.dq, i));
  Matrix dk = product(dtype, transposed(dscore), plain.q);
  for (float& value : dk.values)
    value = rounded(dtype, value * problem.scores.softmax_scale);
  return {std::move(dk), std::move(dv)};
}

// Rows behind the real ones (seqused) have gradient 0.
template <class RowOf>
void clear_rows(std::int64_t begin, std::int64_t end, std::int64_t count, RowOf row_of) {
  for (std::int64_t i = begin; i < end; ++i)
    std::fill_n(row_of(i), count, 0.0);
}

}  // namespace

void plain_forward(const Problem& problem, const AttentionCall& call, DType dtype) {
  const std::int64_t heads = problem.sizes.num_heads_q;
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
  });
}

void plain_backward(const Problem& problem, const AttentionCall& call, DType dtype) {
  const Problem::Sizes& sizes = problem.sizes;
  if (problem.gradients.dbias) fill(call.dbias, 0.0);
  if (problem.gradients.dsinks) fill(call.dsinks, 0.0);
  std::mutex mutex;
  parallel_for(sizes.batch * sizes.num_heads_kv, num_threads(), [&](std::int64_t task, int) {
    const std::int64_t batch = task / sizes.num_heads_kv;
    const std::int64_t first = task % sizes.num_heads_kv * problem.group_size();
    const Head<double> keys(problem, call, batch, first);
    const Sequence& sequence = keys.sequence;
    Matrix dk(sequence.seqlen_k, sizes.head_dim);
    Matrix dv(sequence.seqlen_k, sizes.head_dim_v);
    for (std::int64_t h = first; h < first + problem.group_size(); ++h) {
      const PlainHead plain(problem, call, dtype, batch, h);
      const KeyGradients part = backward_head(problem, call, plain, mutex);
      for (std::size_t n = 0; n < dk.values.size(); ++n)
        dk.values[n] += part.dk.values[n];
      for (std::size_t n = 0; n < dv.values.size(); ++n)
        dv.values[n] += part.dv.values[n];
      clear_rows(sequence.seqlen_q, sequence.allocated_q, sizes.head_dim,
                 [&](std::int64_t i) { return plain.head.query_row(call.dq, i); });
    }
    for (float& value : dk.values)
      value = rounded(dtype, value);
    for (float& value : dv.values)
      value = rounded(dtype, value);
    for (std::int64_t j = 0; j < sequence.seqlen_k; ++j) {
      store(dk, j, keys.key_row(call.dk, j));
      store(dv, j, keys.key_row(call.dv, j));
    }
    clear_rows(sequence.seqlen_k, sequence.allocated_k, sizes.head_dim,
               [&](std::int64_t j) { return keys.key_row(call.dk, j); });
    clear_rows(sequence.seqlen_k, sequence.allocated_k, sizes.head_dim_v,
               [&](std::int64_t j) { return keys.key_row(call.dv, j); });
  });
}

}  // namespace flashmha::tests
