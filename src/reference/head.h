// One head of one sequence, in the words of the formulas:
//
//   x_ij = softmax_scale * q_i . k_j
//   s_ij = softcap * tanh(x_ij / softcap) - slope * |i + shift - j| + bias_ij
//   p_ij = exp(s_ij - lse_i) for the keys j that query i sees, 0 for the others
//   z_ij = 1 / (1 - dropout) for kept elements, 0 for dropped ones
//
// Everything is a double from the moment it is read until it is stored.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <type_traits>

#include "attention/mask.h"
#include "attention/philox.h"
#include "attention/sequence.h"
#include "flashmha/plan.h"

namespace flashmha::reference {

inline constexpr std::int64_t kMaxHeadDim = 256;

template <class T>
double to_double(T value) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<double>(value);
  } else {
    return static_cast<double>(static_cast<float>(value));
  }
}

template <class T>
T from_double(double value) {
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else {
    return static_cast<T>(static_cast<float>(value));
  }
}

// a . b, in four partial sums because one alone would wait for every addition.
template <class A, class B>
double dot(const A* a, const B* b, std::int64_t count) {
  double sums[4] = {};
  std::int64_t d = 0;
  for (; d + 4 <= count; d += 4) {
    for (int lane = 0; lane < 4; ++lane) {
      sums[lane] += to_double(a[d + lane]) * to_double(b[d + lane]);
    }
  }
  for (; d < count; ++d)
    sums[0] += to_double(a[d]) * to_double(b[d]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// sum += weight * row
template <class T>
void add_scaled(double weight, const T* row, std::int64_t count, double* sum) {
  for (std::int64_t d = 0; d < count; ++d)
    sum[d] += weight * to_double(row[d]);
}

template <class T>
void store_row(const double* values, std::int64_t count, T* row) {
  for (std::int64_t d = 0; d < count; ++d)
    row[d] = from_double<T>(values[d]);
}

// The type of lse and of the gradients of bias and sinks.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
class Head {
 public:
  Head(const Problem& problem, const AttentionCall& call, std::int64_t batch, std::int64_t head_q)
      : problem_(problem),
        call_(call),
        sequence(find_sequence(problem, call, batch)),
        head(head_q),
        head_kv(head_q / problem.group_size()),
        band_(problem.band, sequence.seqlen_q, sequence.seqlen_k),
        slope_(static_cast<double>(alibi_slope(call, sequence, head_q))),
        dropout_(call.options.dropout, batch * problem.sizes.num_heads_q + head_q) {
    if (problem.scores.bias) bias_ = score_map(call.options.bias, sequence, head_q);
    if (problem.scores.mask) mask_ = score_map(call.options.mask, sequence, head_q);
  }

  // Row i of this head in a tensor shaped like q, and row j in one shaped like k.
  T* query_row(const TensorView& tensor, std::int64_t i) const {
    return row_of(query_rows(tensor, sequence, head), i);
  }
  T* key_row(const TensorView& tensor, std::int64_t j) const {
    return row_of(key_rows(tensor, sequence, head_kv), j);
  }
  const T* key(std::int64_t j) const { return stored(decodes() ? call_.cache.k : call_.k, j); }
  const T* value(std::int64_t j) const { return stored(decodes() ? call_.cache.v : call_.v, j); }

  // Element i of this head in a tensor shaped like lse.
  Wide<T>& lse(const TensorView& tensor, std::int64_t i) const {
    return tensor.as<Wide<T>>()[lse_offset(tensor, sequence, head) + i];
  }

  bool sees(std::int64_t i, std::int64_t j) const {
    const KeyRange keys = band_.keys(i);
    if (j < keys.begin || j >= keys.end) return false;
    if (!problem_.scores.mask) return true;
    const std::int64_t at = i * mask_.row_stride + j * mask_.column_stride;
    return reinterpret_cast<const std::uint8_t*>(mask_.data)[at] != 0;
  }

  // s_ij, from x_ij.
  double score(double x, std::int64_t i, std::int64_t j) const {
    const auto softcap = static_cast<double>(problem_.scores.softcap);
    double score = softcap > 0 ? softcap * std::tanh(x / softcap) : x;
    if (problem_.scores.alibi) {
      score -= slope_ * static_cast<double>(std::abs(i + band_.shift - j));
    }
    if (problem_.scores.bias) {
      score += bias_at(i * bias_.row_stride + j * bias_.column_stride);
    }
    return score;
  }

  // d s_ij / d x_ij = 1 - tanh^2(x_ij / softcap)
  double score_slope(double x) const {
    const auto softcap = static_cast<double>(problem_.scores.softcap);
    if (!(softcap > 0)) return 1;
    const double tanh = std::tanh(x / softcap);
    return 1 - tanh * tanh;
  }

  // z_ij
  double dropout_scale(std::int64_t i, std::int64_t j) const {
    if (problem_.scores.dropout_p == 0) return 1;
    return dropout_.keep(i, j) ? 1 / (1 - static_cast<double>(problem_.scores.dropout_p)) : 0;
  }

  // The logit that this head adds to every denominator; -inf adds nothing.
  double sink() const {
    return problem_.scores.sinks
               ? element_as_double(call_.options.sinks, head * call_.options.sinks.stride(0))
               : -INFINITY;
  }

 private:
  const Problem& problem_;
  const AttentionCall& call_;

 public:
  const Sequence sequence;
  const std::int64_t head;
  const std::int64_t head_kv;

 private:
  bool decodes() const { return problem_.pass == Pass::decode; }

  static T* row_of(const HeadRows& rows, std::int64_t index) {
    return reinterpret_cast<T*>(rows.row(index));
  }
  const T* stored(const TensorView& tensor, std::int64_t j) const {
    return row_of(find_keys(problem_, call_, tensor, sequence, head_kv, j, 1).rows, 0);
  }
  double bias_at(std::int64_t at) const {
    return bias_.dtype == DType::float32
               ? static_cast<double>(reinterpret_cast<const float*>(bias_.data)[at])
               : to_double(reinterpret_cast<const T*>(bias_.data)[at]);
  }

  SequenceBand band_;
  ScoreMap bias_;
  ScoreMap mask_;
  double slope_;
  DropoutRows dropout_;
};

}  // namespace flashmha::reference
