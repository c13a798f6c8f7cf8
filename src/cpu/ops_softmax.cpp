// Softmax and dropout on materialised scores.
#include <cmath>
#include <limits>

#include "attention/mask.h"
#include "attention/philox.h"
#include "cpu/ops.h"
#include "cpu/ops_rows.h"

namespace flashmha::cpu::ops {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One matrix of scores [batch, num_heads, seqlen_q, seqlen_k], row by row.
class ScoreRows {
 public:
  ScoreRows(const TensorView& scores, const SoftmaxOptions& options)
      : num_heads_(scores.size(1)),
        seqlen_q_(scores.size(2)),
        seqlen_k_(scores.size(3)),
        options_(options) {
    if (options.mask.defined()) mask_ = options.mask.broadcast_to(scores.shape);
    if (options.sinks.defined()) sinks_ = to_floats(options.sinks);
  }

  std::int64_t head(std::int64_t row) const { return row / seqlen_q_ % num_heads_; }

  // Columns that the window lets row r see; the boolean mask may take more away.
  KeyRange visible(std::int64_t row) const {
    const std::int64_t center = row % seqlen_q_ + options_.shift;
    KeyRange range{0, seqlen_k_};
    if (options_.window_left >= 0) range.begin = center - options_.window_left;
    if (options_.window_right >= 0) range.end = center + options_.window_right + 1;
    range.begin = std::clamp<std::int64_t>(range.begin, 0, seqlen_k_);
    range.end = std::clamp<std::int64_t>(range.end, range.begin, seqlen_k_);
    return range;
  }

  // scores[j] = -inf where the boolean mask hides column range.begin + j.
  void hide(std::int64_t row, KeyRange range, float* scores) const {
    if (!mask_.defined()) return;
    const std::int64_t i = row % seqlen_q_;
    const std::int64_t batch = row / seqlen_q_ / num_heads_;
    const bool* seen = mask_.as<bool>() + batch * mask_.strides[0] + head(row) * mask_.strides[1] +
                       i * mask_.strides[2] + range.begin * mask_.strides[3];
    const std::int64_t stride = mask_.strides[3];
    for (std::int64_t j = 0; j < range.end - range.begin; ++j) {
      scores[j] = seen[j * stride] ? scores[j] : -kInfinity;
    }
  }

  float sink(std::int64_t row) const {
    return sinks_.empty() ? -kInfinity : sinks_[static_cast<std::size_t>(head(row))];
  }

 private:
  std::int64_t num_heads_, seqlen_q_, seqlen_k_;
  const SoftmaxOptions& options_;
  TensorView mask_;
  std::vector<float> sinks_;
};

// scores[0, n) become probabilities; returns the log of the denominator.
float normalise(float* scores, std::int64_t n, float sink) {
  const RowKernels& kernel = row_kernels();
  const float top = std::max(kernel.maximum(scores, n), sink);
  if (top == -kInfinity) {
    std::fill(scores, scores + n, 0.0f);
    return -kInfinity;
  }
  const float sum = kernel.exp_sum(scores, top, n, scores) + std::exp(sink - top);
  kernel.scale(scores, 1.0f / sum, n, scores);
  return top + std::log(sum);
}

}  // namespace

void softmax(const TensorView& scores, const SoftmaxOptions& options,
             const TensorView& probabilities, const TensorView& lse, Stream) {
  const ScoreRows shape(scores, options);
  const Rows in(scores);
  const Rows out(probabilities);
  parallel_blocks(in.count(), in.length(), [&](std::int64_t begin, std::int64_t end) {
    const RowBuffer buffer(in.length());
    for (std::int64_t r = begin; r < end; ++r) {
      const KeyRange range = shape.visible(r);
      const std::int64_t n = range.end - range.begin;
      const float* from = in.read(r, range.begin, n, buffer);
      float* row = out.target(r, range.begin, buffer);
      if (options.softcap > 0.0f) {
        row_kernels().softcap(from, options.softcap, n, row);
      } else if (from != row) {
        std::copy(from, from + n, row);
      }
      shape.hide(r, range, row);
      const float log_sum = normalise(row, n, shape.sink(r));
      if (lse.defined()) lse.as<float>()[r] = log_sum;
      out.finish(r, range.begin, n, row);
      out.zero(r, 0, range.begin);
      out.zero(r, range.end, out.length());
    }
  });
}

// With D = sum(p dp): dscores = p (dp - D), and a sink of probability s gets -s D.
void softmax_backward(const TensorView& dprobabilities, const SoftmaxSaved& saved,
                      const SoftmaxOptions& options, const TensorView& dscores,
                      const TensorView& dsinks, Stream) {
  const RowKernels& kernel = row_kernels();
  const ScoreRows shape(saved.probabilities, options);
  const Rows p(saved.probabilities);
  const Rows dp(dprobabilities);
  const Rows out(dscores);
  std::vector<float> sink_parts(dsinks.defined() ? static_cast<std::size_t>(p.count()) : 0);
  parallel_blocks(p.count(), p.length(), [&](std::int64_t begin, std::int64_t end) {
    const RowBuffer p_buffer(p.length());
    const RowBuffer dp_buffer(p.length());
    for (std::int64_t r = begin; r < end; ++r) {
      const KeyRange range = shape.visible(r);
      const std::int64_t n = range.end - range.begin;
      const float* probability = p.read(r, range.begin, n, p_buffer);
      const float* gradient = dp.read(r, range.begin, n, dp_buffer);
      const float mean = kernel.dot(probability, gradient, n);
      if (!sink_parts.empty()) {
        const float log_sum = saved.lse.as<float>()[r];
        sink_parts[static_cast<std::size_t>(r)] = -std::exp(shape.sink(r) - log_sum) * mean;
      }
      float* to = out.target(r, range.begin, dp_buffer);
      kernel.softmax_gradient(probability, gradient, mean, n, to);
      if (options.softcap > 0.0f) {
        const float* score = Rows(saved.scores).read(r, range.begin, n, p_buffer);
        kernel.softcap_gradient(score, options.softcap, n, to);
      }
      out.finish(r, range.begin, n, to);
      out.zero(r, 0, range.begin);
      out.zero(r, range.end, out.length());
    }
  });
  for (std::size_t r = 0; r < sink_parts.size(); ++r) {
    dsinks.as<float>()[shape.head(static_cast<std::int64_t>(r))] += sink_parts[r];
  }
}

void attention_dropout(const TensorView& x, const Dropout& dropout, const TensorView& y, Stream) {
  const Rows in(x);
  const Rows out(y);
  const std::int64_t seqlen_q = x.size(2);
  const std::int64_t n = in.length();
  const float scale = 1.0f / (1.0f - dropout.p);
  parallel_blocks(in.count(), 8 * n, [&](std::int64_t begin, std::int64_t end) {
    const RowBuffer buffer(n);
    for (std::int64_t r = begin; r < end; ++r) {
      const DropoutRows draws(dropout, r / seqlen_q);
      const float* from = in.read(r, buffer);
      float* to = out.target(r, buffer);
      for (std::int64_t j = 0; j < n; j += DropoutRows::kColumnsPerBlock) {
        const std::uint32_t keep = draws.keep_bits(r % seqlen_q, j / DropoutRows::kColumnsPerBlock);
        const std::int64_t columns = std::min<std::int64_t>(DropoutRows::kColumnsPerBlock, n - j);
        for (std::int64_t c = 0; c < columns; ++c) {
          to[j + c] = (keep >> c) & 1u ? from[j + c] * scale : 0.0f;
        }
      }
      out.finish(r, to);
    }
  });
}

}  // namespace flashmha::cpu::ops
