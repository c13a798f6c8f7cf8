// Loss, gradient norm, optimiser.
#include <cmath>

#include "cuda/ops/call.h"
#include "cuda/ops/ops.h"
#include "cuda/ops/rows.cuh"

namespace flashmha::cuda::ops {
namespace {

struct Targets {
  const void* data;
  bool wide;  // int64, else int32
  std::int64_t ignore_index;
  __device__ std::int64_t operator[](std::int64_t row) const {
    return wide ? static_cast<const std::int64_t*>(data)[row]
                : static_cast<const std::int32_t*>(data)[row];
  }
};

// ---- cross-entropy: the logits are read once for the loss, and once, in place, for its gradient

template <int kTeam>
__global__ void __launch_bounds__(kTeam* kTeamsPerBlock<kTeam>)
    log_sum_kernel(const __grid_constant__ TensorRows logits, Targets targets, float* lse) {
  const Place<kTeam> place;
  if (place.row >= logits.count) return;
  Denominator denominator;
  if (targets[place.row] != targets.ignore_index) {
    const std::int64_t row = row_offset(logits, place.row);
    for (std::int64_t j = place.lane * kVector; j < logits.length; j += kTeam * kVector) {
      float x[kVector];
      load(logits, row, j, x);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (j + i < logits.length) denominator.add(x[i]);
      }
    }
  }
  denominator = reduce<kTeam>(denominator, MergeDenominators());
  if (place.lane != 0) return;
  const bool ignored = targets[place.row] == targets.ignore_index;
  lse[place.row] = ignored ? 0.0f : denominator.largest + logf(denominator.sum);
}

struct LossSum {
  double sum;
  double count;
  friend __device__ LossSum operator+(LossSum a, LossSum b) {
    return {a.sum + b.sum, a.count + b.count};
  }
};

// One block.
__global__ void __launch_bounds__(kBlock)
    mean_loss_kernel(const __grid_constant__ TensorRows logits, Targets targets, const float* lse,
                     float* loss) {
  LossSum total{0.0, 0.0};
  for (std::int64_t r = threadIdx.x; r < logits.count; r += kBlock) {
    const std::int64_t target = targets[r];
    if (target == targets.ignore_index) continue;
    const bool known = target >= 0 && target < logits.length;
    const std::int64_t at = row_offset(logits, r) + target * logits.step;
    total.sum += known ? lse[r] - load_one(logits.data, logits.dtype, at) : NAN;
    total.count += 1.0;
  }
  total = reduce<kBlock>(total, Sum());
  if (threadIdx.x != 0) return;
  loss[0] = total.count > 0.0 ? static_cast<float>(total.sum / total.count) : 0.0f;
  loss[1] = static_cast<float>(total.count);
}

struct LossGradient {
  TensorRows logits, out;
  Targets targets;
  const float* lse;
  const float* loss;
  const float* scale;  // or null
  std::int64_t vectors_per_row = 0;
  std::int64_t num_vectors = 0;
};

__global__ void __launch_bounds__(kBlock)
    loss_gradient_kernel(const __grid_constant__ LossGradient p) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (index >= p.num_vectors) return;
  const auto [r, vector] = divide(index, p.vectors_per_row);
  const std::int64_t j = vector * kVector;
  const std::int64_t target = p.targets[r];
  const float count = p.loss[1];
  const float scale = p.scale ? p.scale[0] : 1.0f;
  const float factor = count > 0.0f ? scale / count : 0.0f;
  float x[kVector] = {};
  if (target != p.targets.ignore_index) {
    load(p.logits, row_offset(p.logits, r), j, x);
    const float lse = p.lse[r];
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      x[i] = expf(x[i] - lse) * factor - (j + i == target ? factor : 0.0f);
  }
  store(p.out, row_offset(p.out, r), j, x);
}

// ---- many tensors in one launch ----------------------------------------------------------------

// A launch takes as many tensors as its parameters (4 KiB, on every GPU) have room for. Blocks are
// given to tensors in pieces of kPiece elements.
constexpr std::int64_t kPiece = 16384;

template <class Entry, int kMost>
struct Batch {
  Entry entries[kMost];
  std::int64_t first_piece[kMost + 1];  // of every tensor, and the end
  int count;

  // The tensor that a piece belongs to.
  __device__ int find(std::int64_t piece) const {
    int low = 0;
    int high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first_piece[middle] <= piece) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};

// launch(batch) for all entries, in batches.
template <class Entry, int kMost, class Tensors, class EntryOf, class Launch>
void for_each_batch(const Tensors& tensors, EntryOf entry_of, Launch launch) {
  Batch<Entry, kMost> batch{};
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Entry entry = entry_of(tensors[i]);
    batch.entries[batch.count] = entry;
    batch.first_piece[batch.count + 1] =
        batch.first_piece[batch.count] + (entry.count + kPiece - 1) / kPiece;
    ++batch.count;
    if (batch.count == kMost || i + 1 == tensors.size()) {
      launch(batch);
      batch = {};
    }
  }
}

struct Values {
  const float* data;
  std::int64_t count;
};
using NormBatch = Batch<Values, 128>;
static_assert(sizeof(NormBatch) < 4000);

constexpr std::int64_t kMostNormBlocks = 1024;

// squares[block] = the sum of squares of the pieces block, block + gridDim, ...
__global__ void __launch_bounds__(kBlock)
    squares_kernel(const __grid_constant__ NormBatch batch, double* squares) {
  const std::int64_t num_pieces = batch.first_piece[batch.count];
  double total = 0.0;
  for (std::int64_t piece = blockIdx.x; piece < num_pieces; piece += gridDim.x) {
    const int tensor = batch.find(piece);
    const Values values = batch.entries[tensor];
    const std::int64_t begin = (piece - batch.first_piece[tensor]) * kPiece;
    const std::int64_t end = min(begin + kPiece, values.count);
    const bool aligned = reinterpret_cast<std::uintptr_t>(values.data) % 16 == 0;
    float sum = 0.0f;
    for (std::int64_t i = begin + threadIdx.x * 4; i < end; i += kBlock * 4) {
      if (aligned && i + 4 <= end) {
        const float4 x = *reinterpret_cast<const float4*>(values.data + i);
        sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
      } else {
        for (std::int64_t k = i; k < min(i + 4, end); ++k)
          sum += values.data[k] * values.data[k];
      }
    }
    total += sum;
  }
  total = reduce<kBlock>(total, Sum());
  if (threadIdx.x == 0) squares[blockIdx.x] = total;
}

// One block.
__global__ void __launch_bounds__(kBlock)
    norm_of_squares_kernel(const double* squares, std::int64_t count, float* norm) {
  double total = 0.0;
  for (std::int64_t i = threadIdx.x; i < count; i += kBlock)
    total += squares[i];
  total = reduce<kBlock>(total, Sum());
  if (threadIdx.x == 0) norm[0] = static_cast<float>(sqrt(total));
}

struct AdamWEntry {
  void* parameter;
  float* gradient;
  float* moment1;
  float* moment2;
  float* master;  // the parameter itself if it is float32
  std::int64_t count;
  DType dtype;
};
using AdamWBatch = Batch<AdamWEntry, 48>;
static_assert(sizeof(AdamWBatch) < 3900);

// Of all parameters of a launch.
struct AdamWUpdate {
  float learning_rate, beta1, beta2, eps, decay;
  float correction1, correction2;  // 1 / (1 - beta^step)
  float gradient_scale;

  __device__ AdamWUpdate(const AdamWOptions& options, const float* schedule, float gradient_norm)
      : learning_rate(schedule[0]),
        beta1(options.beta1),
        beta2(options.beta2),
        eps(options.eps),
        decay(1.0f - schedule[0] * options.weight_decay),
        correction1(schedule[1]),
        correction2(schedule[2]),
        gradient_scale(options.max_gradient_norm > 0.0f
                           ? fminf(1.0f, options.max_gradient_norm / (gradient_norm + 1e-6f))
                           : 1.0f) {}

  __device__ __forceinline__ void operator()(float gradient, float& value, float& moment1,
                                             float& moment2) const {
    gradient *= gradient_scale;
    moment1 = beta1 * moment1 + (1.0f - beta1) * gradient;
    moment2 = beta2 * moment2 + (1.0f - beta2) * gradient * gradient;
    const float step = moment1 * correction1 / (sqrtf(moment2 * correction2) + eps);
    value = value * decay - learning_rate * step;
  }
};

__global__ void __launch_bounds__(kBlock)
    adamw_kernel(const __grid_constant__ AdamWBatch batch, AdamWOptions options,
                 const float* schedule, const float* gradient_norm) {
  const float norm = gradient_norm ? gradient_norm[0] : 0.0f;
  if (!isfinite(norm)) return;
  const AdamWUpdate update(options, schedule, norm);
  const int tensor = batch.find(blockIdx.x);
  const AdamWEntry p = batch.entries[tensor];
  const std::int64_t begin = (blockIdx.x - batch.first_piece[tensor]) * kPiece;
  const std::int64_t end = min(begin + kPiece, p.count);
  const auto place = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data); };
  const bool aligned = (place(p.parameter) | place(p.gradient) | place(p.moment1) |
                        place(p.moment2) | place(p.master)) %
                           16 ==
                       0;
  const bool narrow = p.dtype != DType::float32;
  for (std::int64_t i = begin + threadIdx.x * 4; i < end; i += kBlock * 4) {
    if (aligned && i + 4 <= end) {
      const float4 g = *reinterpret_cast<const float4*>(p.gradient + i);
      float4 m1 = *reinterpret_cast<float4*>(p.moment1 + i);
      float4 m2 = *reinterpret_cast<float4*>(p.moment2 + i);
      float4 value = *reinterpret_cast<float4*>(p.master + i);
      update(g.x, value.x, m1.x, m2.x);
      update(g.y, value.y, m1.y, m2.y);
      update(g.z, value.z, m1.z, m2.z);
      update(g.w, value.w, m1.w, m2.w);
      *reinterpret_cast<float4*>(p.gradient + i) = {};
      *reinterpret_cast<float4*>(p.moment1 + i) = m1;
      *reinterpret_cast<float4*>(p.moment2 + i) = m2;
      *reinterpret_cast<float4*>(p.master + i) = value;
      if (narrow) store_narrow_four(p.parameter, p.dtype, i, value);
      continue;
    }
    for (std::int64_t k = i; k < min(i + 4, end); ++k) {
      update(p.gradient[k], p.master[k], p.moment1[k], p.moment2[k]);
      p.gradient[k] = 0.0f;
      if (narrow) store_one(p.parameter, p.dtype, k, p.master[k]);
    }
  }
}

Targets targets_of(const TensorView& targets, std::int64_t ignore_index) {
  return {targets.data, targets.dtype == DType::int64, ignore_index};
}

}  // namespace

void cross_entropy(const TensorView& logits, const TensorView& targets, std::int64_t ignore_index,
                   const TensorView& loss, const TensorView& lse, Stream stream) {
  const Call call("cross_entropy", logits.device, stream);
  const TensorRows rows = rows_of(logits);
  const Targets wanted = targets_of(targets, ignore_index);
  launch_rows(call, rows, log_sum_kernel<kWarp>, log_sum_kernel<kBlock>, rows, wanted,
              lse.as<float>());
  call.launch(mean_loss_kernel, 1, kBlock, rows, wanted, lse.as<float>(), loss.as<float>());
}

void cross_entropy_backward(const TensorView& logits, const CrossEntropySaved& saved,
                            const TensorView& dlogits, Stream stream) {
  const Call call("cross_entropy_backward", logits.device, stream);
  LossGradient p{.logits = rows_of(logits),
                 .out = rows_of(dlogits),
                 .targets = targets_of(saved.targets, saved.ignore_index),
                 .lse = saved.lse.as<float>(),
                 .loss = saved.loss.as<float>(),
                 .scale = saved.scale.defined() ? saved.scale.as<float>() : nullptr};
  p.vectors_per_row = (p.out.length + kVector - 1) / kVector;
  p.num_vectors = p.out.count * p.vectors_per_row;
  call.launch(loss_gradient_kernel, (p.num_vectors + kBlock - 1) / kBlock, kBlock, p);
}

void gradient_norm(std::span<const TensorView> gradients, const TensorView& norm, Stream stream) {
  const Call call("gradient_norm", norm.device, stream);
  constexpr std::size_t kTensorsPerBatch = 128;
  const std::size_t num_batches = (gradients.size() + kTensorsPerBatch - 1) / kTensorsPerBatch;
  const Tensor scratch = call.scratch(num_batches * kMostNormBlocks * sizeof(double));
  auto* squares = static_cast<double*>(scratch.view().data);
  std::int64_t num_squares = 0;
  const auto values_of = [](const TensorView& view) {
    return Values{view.as<float>(), view.numel()};
  };
  for_each_batch<Values, kTensorsPerBatch>(gradients, values_of, [&](const NormBatch& batch) {
    const std::int64_t blocks = std::min(batch.first_piece[batch.count], kMostNormBlocks);
    call.launch(squares_kernel, blocks, kBlock, batch, squares + num_squares);
    num_squares += blocks;
  });
  call.launch(norm_of_squares_kernel, 1, kBlock, squares, num_squares, norm.as<float>());
}

void adamw(std::span<const AdamWState> states, const AdamWStep& step, const AdamWOptions& options,
           Stream stream) {
  if (states.empty()) return;
  const Call call("adamw", states.front().parameter.device, stream);
  const auto entry_of = [](const AdamWState& state) {
    const bool narrow = state.master.defined();
    return AdamWEntry{.parameter = state.parameter.data,
                      .gradient = state.gradient.as<float>(),
                      .moment1 = state.moment1.as<float>(),
                      .moment2 = state.moment2.as<float>(),
                      .master = narrow ? state.master.as<float>() : state.parameter.as<float>(),
                      .count = state.parameter.numel(),
                      .dtype = state.parameter.dtype};
  };
  for_each_batch<AdamWEntry, 48>(states, entry_of, [&](const AdamWBatch& batch) {
    call.launch(adamw_kernel, batch.first_piece[batch.count], kBlock, batch, options,
                step.schedule.as<float>(),
                step.gradient_norm.defined() ? step.gradient_norm.as<float>() : nullptr);
  });
}

}  // namespace flashmha::cuda::ops
