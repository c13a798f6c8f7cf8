// Loss, gradient norm, optimiser.
#include <cmath>
#include <limits>

#include "core/check.h"
#include "cpu/ops.h"
#include "cpu/ops_rows.h"

namespace flashmha::cpu::ops {
namespace {

std::int64_t target_at(const TensorView& targets, std::int64_t row) {
  return targets.dtype == DType::int32 ? targets.as<std::int32_t>()[row]
                                       : targets.as<std::int64_t>()[row];
}

// Log of the sum of exponentials of a row, chunk by chunk.
float log_sum_exp(const Rows& rows, std::int64_t r) {
  const RowKernels& kernel = row_kernels();
  float buffer[kChunk];
  float top = -std::numeric_limits<float>::infinity();
  for (std::int64_t begin = 0; begin < rows.length(); begin += kChunk) {
    const std::int64_t n = std::min(kChunk, rows.length() - begin);
    top = std::max(top, kernel.maximum(rows.read(r, begin, n, buffer), n));
  }
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < rows.length(); begin += kChunk) {
    const std::int64_t n = std::min(kChunk, rows.length() - begin);
    sum += kernel.exp_sum(rows.read(r, begin, n, buffer), top, n, buffer);
  }
  return top + static_cast<float>(std::log(sum));
}

void update_parameter(const AdamWState& state, const RowKernels::AdamWStep& constants) {
  const bool narrow = state.master.defined();
  const Rows parameter(state.parameter.reshape({-1}));
  float* values = narrow ? state.master.as<float>() : state.parameter.as<float>();
  float* gradient = state.gradient.as<float>();
  float* moment1 = state.moment1.as<float>();
  float* moment2 = state.moment2.as<float>();
  parallel_chunks(parameter, [&](std::int64_t, std::int64_t begin, std::int64_t n) {
    row_kernels().adamw(constants, gradient + begin, n, values + begin, moment1 + begin,
                        moment2 + begin);
    if (narrow) parameter.finish(0, begin, n, values + begin);
    std::fill_n(gradient + begin, n, 0.0f);
  });
}

}  // namespace

void cross_entropy(const TensorView& logits, const TensorView& targets, std::int64_t ignore_index,
                   const TensorView& loss, const TensorView& lse, Stream) {
  const Rows rows(logits);
  for (std::int64_t r = 0; r < rows.count(); ++r) {
    const std::int64_t target = target_at(targets, r);
    check(target == ignore_index || (target >= 0 && target < rows.length()),
          "[cross_entropy] targets must be in [0, {}) or ignore_index ({}); got {} in row {}",
          rows.length(), ignore_index, target, r);
  }
  std::vector<float> losses(static_cast<std::size_t>(rows.count()));
  parallel_blocks(rows.count(), rows.length(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t target = target_at(targets, r);
      float log_sum = 0.0f;
      if (target != ignore_index) {
        float logit = 0.0f;
        log_sum = log_sum_exp(rows, r);
        losses[static_cast<std::size_t>(r)] = log_sum - *rows.read(r, target, 1, &logit);
      }
      lse.as<float>()[r] = log_sum;
    }
  });
  double sum = 0.0;
  std::int64_t count = 0;
  for (std::int64_t r = 0; r < rows.count(); ++r) {
    sum += losses[static_cast<std::size_t>(r)];
    count += target_at(targets, r) != ignore_index;
  }
  loss.as<float>()[0] = count > 0 ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
  loss.as<float>()[1] = static_cast<float>(count);
}

void cross_entropy_backward(const TensorView& logits, const CrossEntropySaved& saved,
                            const TensorView& dlogits, Stream) {
  const Rows in(logits);
  const Rows out(dlogits);
  const float count = saved.loss.as<float>()[1];
  const float scale = saved.scale.defined() ? saved.scale.as<float>()[0] : 1.0f;
  const float factor = count > 0.0f ? scale / count : 0.0f;
  parallel_chunks(in, [&](std::int64_t r, std::int64_t begin, std::int64_t n) {
    const std::int64_t target = target_at(saved.targets, r);
    if (target == saved.ignore_index) {
      out.zero(r, begin, begin + n);
      return;
    }
    float buffer[kChunk];
    const float* from = in.read(r, begin, n, buffer);
    float* to = out.target(r, begin, buffer);
    row_kernels().exp_sum(from, saved.lse.as<float>()[r], n, to);
    row_kernels().scale(to, factor, n, to);
    if (target >= begin && target < begin + n) to[target - begin] -= factor;
    out.finish(r, begin, n, to);
  });
}

void gradient_norm(std::span<const TensorView> gradients, const TensorView& norm, Stream) {
  double total = 0.0;
  for (const TensorView& gradient : gradients) {
    const std::int64_t count = gradient.numel();
    const std::int64_t chunks = (count + kChunk - 1) / kChunk;
    const float* values = gradient.as<float>();
    std::vector<double> squares(static_cast<std::size_t>(chunks));
    parallel_blocks(chunks, kChunk, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t chunk = first; chunk < last; ++chunk) {
        const float* from = values + chunk * kChunk;
        const std::int64_t n = std::min(kChunk, count - chunk * kChunk);
        squares[static_cast<std::size_t>(chunk)] = row_kernels().dot(from, from, n);
      }
    });
    for (const double square : squares)
      total += square;
  }
  norm.as<float>()[0] = static_cast<float>(std::sqrt(total));
}

void adamw(std::span<const AdamWState> states, const AdamWStep& step, const AdamWOptions& options,
           Stream) {
  const auto* schedule = step.schedule.as<float>();
  const float norm = step.gradient_norm.defined() ? step.gradient_norm.as<float>()[0] : 0.0f;
  if (!std::isfinite(norm)) return;
  const bool clips = options.max_gradient_norm > 0.0f;
  const RowKernels::AdamWStep constants{
      .learning_rate = schedule[0],
      .beta1 = options.beta1,
      .beta2 = options.beta2,
      .eps = options.eps,
      .decay = 1.0f - schedule[0] * options.weight_decay,
      .correction1 = schedule[1],
      .correction2 = schedule[2],
      .gradient_scale = clips ? std::min(1.0f, options.max_gradient_norm / (norm + 1e-6f)) : 1.0f,
  };
  for (const AdamWState& state : states)
    update_parameter(state, constants);
}

}  // namespace flashmha::cpu::ops
