// Choosing tokens: one block a row. Sums that decide between tokens are of integers, so that their
// order does not matter: a weight w in [0, 1] counts as w 2^40, rounded, where the filter of top_p
// compares sums.
#include <climits>

#include "cuda/ops/call.h"
#include "cuda/ops/ops.h"
#include "cuda/ops/rows.cuh"

namespace flashmha::cuda::ops {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDigits = 256;  // of a key, 8 bits a pass
using Sum64 = unsigned long long;

__global__ void __launch_bounds__(kBlock)
    penalise_kernel(float* scores, const std::int32_t* seen, float penalty, std::int64_t vocabulary,
                    std::int64_t num_seen, std::int64_t num_rows) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (i >= num_rows * num_seen) return;
  const std::int32_t token = seen[i];
  if (token < 0 || token >= vocabulary) return;
  float& score = scores[i / num_seen * vocabulary + token];
  score = score < 0.0f ? score * penalty : score / penalty;
}

// Rises with the score: negative floats are turned around.
__device__ __forceinline__ unsigned key_of(float score) {
  const unsigned bits = __float_as_uint(score);
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ Sum64 counted(double weight) {
  return static_cast<Sum64>(weight * 0x1p40 + 0.5);
}

// Amounts of the digits of a pass; each warp has its own, so that few threads meet at one.
struct Histogram {
  Sum64 amounts[kWarps][kDigits];
};

// The key at which the sum of amount(j) over keys from the highest down reaches `wanted`: keys
// above it are wanted as a whole, and of those equal to it what is missing. In four passes over the
// row, one for each digit of the key.
struct Threshold {
  unsigned key;
  Sum64 missing;
};

template <class KeyOf, class AmountOf>
__device__ Threshold find_threshold(Histogram& histogram, std::int64_t length, Sum64 wanted,
                                    KeyOf key_at, AmountOf amount_at) {
  __shared__ Sum64 totals[kDigits];
  __shared__ Threshold found;
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread == 0) found = {0, wanted};
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = thread; i < kWarps * kDigits; i += kThreads)
      (&histogram.amounts[0][0])[i] = 0;
    __syncthreads();
    const unsigned prefix = found.key;
    const unsigned known = shift == 24 ? 0u : 0xFFFFFFFFu << (shift + 8);
    for (std::int64_t j = thread; j < length; j += kThreads) {
      const unsigned key = key_at(j);
      if ((key & known) != prefix) continue;
      const Sum64 amount = amount_at(j);
      if (amount > 0) {
        atomicAdd(&histogram.amounts[thread / kWarp][(key >> shift) & 0xFF], amount);
      }
    }
    __syncthreads();
    if (thread < kDigits) {
      Sum64 total = 0;
      for (int warp = 0; warp < kWarps; ++warp)
        total += histogram.amounts[warp][thread];
      totals[thread] = total;
    }
    __syncthreads();
    if (thread == 0) {
      int digit = kDigits - 1;
      while (digit > 0 && totals[digit] < found.missing) {
        found.missing -= totals[digit];
        --digit;
      }
      found.key |= static_cast<unsigned>(digit) << shift;
    }
    __syncthreads();
  }
  const Threshold result = found;
  __syncthreads();
  return result;
}

// Sum of the values of all threads before this one.
template <class T>
__device__ T sum_before(T value, T& total) {
  __shared__ T of_warps[kWarps];
  const auto lane = static_cast<int>(threadIdx.x % kWarp);
  const auto warp = static_cast<int>(threadIdx.x / kWarp);
  T inclusive = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T other = __shfl_up_sync(0xFFFFFFFFu, inclusive, distance);
    if (lane >= distance) inclusive += other;
  }
  __syncthreads();  // an earlier call may still read
  if (lane == kWarp - 1) of_warps[warp] = inclusive;
  __syncthreads();
  T before = 0;
  total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) before += of_warps[i];
    total += of_warps[i];
  }
  return before + inclusive - value;
}

struct Sampling {
  const float* scores;
  const double* uniforms;
  std::int32_t* out;
  double* weights;
  std::int64_t vocabulary;
  SampleOptions options;
};

// Of the tokens whose key is the threshold's the first ones stay, up to what is missing.
__device__ void keep_first(const float* scores, double* weights, std::int64_t length,
                           const Threshold& threshold) {
  Sum64 before = 0;
  for (std::int64_t first = 0; first < length; first += kThreads) {
    const std::int64_t j = first + threadIdx.x;
    const bool equal = j < length && key_of(scores[j]) == threshold.key;
    const Sum64 own = equal ? counted(weights[j]) : 0;
    Sum64 total = 0;
    const Sum64 sum = before + sum_before(own, total);
    if (j < length && (equal ? sum >= threshold.missing : key_of(scores[j]) < threshold.key)) {
      weights[j] = 0.0;
    }
    before += total;
  }
  __syncthreads();
}

struct Largest {
  __device__ float operator()(float a, float b) const {
    return isnan(a) || isnan(b) ? NAN : fmaxf(a, b);
  }
};

__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ Sampling p) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  auto& histogram = *reinterpret_cast<Histogram*>(shared);
  const std::int64_t row = blockIdx.x;
  const std::int64_t length = p.vocabulary;
  const float* scores = p.scores + row * length;
  double* weights = p.weights + row * length;
  const auto thread = static_cast<std::int64_t>(threadIdx.x);

  float highest = -INFINITY;
  for (std::int64_t j = thread; j < length; j += kThreads)
    highest = Largest()(highest, scores[j]);
  highest = reduce<kThreads>(highest, Largest());
  if (!isfinite(highest)) {
    for (std::int64_t j = thread; j < length; j += kThreads)
      weights[j] = 0.0;
    if (thread == 0) p.out[row] = -1;
    return;
  }

  const auto key_at = [&](std::int64_t j) { return key_of(scores[j]); };
  unsigned lowest = 0;
  if (p.options.top_k > 0 && p.options.top_k < length) {
    lowest = find_threshold(histogram, length, static_cast<Sum64>(p.options.top_k), key_at,
                            [](std::int64_t) { return Sum64{1}; })
                 .key;
  }
  Sum64 counted_here = 0;
  for (std::int64_t j = thread; j < length; j += kThreads) {
    const double distance = static_cast<double>(scores[j]) - static_cast<double>(highest);
    const double weight = key_at(j) < lowest ? 0.0 : exp(distance / p.options.temperature);
    weights[j] = weight;
    counted_here += counted(weight);
  }
  __syncthreads();
  if (p.options.top_p < 1.0) {
    Sum64 total = 0;
    sum_before(counted_here, total);
    const double share = ceil(p.options.top_p * static_cast<double>(total));
    const Sum64 wanted = share < 1.0 ? 1 : static_cast<Sum64>(share);
    const Threshold threshold = find_threshold(histogram, length, wanted, key_at,
                                               [&](std::int64_t j) { return counted(weights[j]); });
    keep_first(scores, weights, length, threshold);
  }

  // Each thread sums a run of neighbours, so that the place is found by two short walks.
  const std::int64_t run = (length + kThreads - 1) / kThreads;
  const std::int64_t begin = min(thread * run, length);
  const std::int64_t end = min(begin + run, length);
  double own = 0.0;
  for (std::int64_t j = begin; j < end; ++j) {
    if (weights[j] < p.options.min_p) weights[j] = 0.0;
    own += weights[j];
  }
  __shared__ int last;  // token with a weight, where rounding leaves nobody the place
  if (thread == 0) last = -1;
  double total = 0.0;
  double sum = sum_before(own, total);
  const double place = p.uniforms[row] * total;
  int token = -1;
  int positive = -1;
  for (std::int64_t j = begin; j < end; ++j) {
    if (weights[j] > 0.0) positive = static_cast<int>(j);
    const double next = sum + weights[j];
    if (token < 0 && weights[j] > 0.0 && sum <= place && place < next) token = static_cast<int>(j);
    sum = next;
  }
  if (positive >= 0) atomicMax(&last, positive);
  __shared__ int chosen;
  if (thread == 0) chosen = INT_MAX;
  __syncthreads();
  if (token >= 0) atomicMin(&chosen, token);
  __syncthreads();
  if (thread == 0) p.out[row] = chosen < INT_MAX ? chosen : last;
}

}  // namespace

void penalise(const TensorView& scores, const TensorView& seen, float penalty, Stream stream) {
  const Call call("penalise", scores.device, stream);
  call.launch(penalise_kernel, (seen.numel() + kBlock - 1) / kBlock, kBlock, scores.as<float>(),
              seen.as<std::int32_t>(), penalty, scores.size(1), seen.size(1), seen.size(0));
}

void sample(const TensorView& scores, const SampleOptions& options, const TensorView& uniforms,
            const TensorView& out, const TensorView& weights, Stream stream) {
  const Call call("sample", scores.device, stream);
  Tensor scratch;
  if (!weights.defined()) {
    scratch = call.scratch(static_cast<std::size_t>(scores.numel()) * sizeof(double));
  }
  const Sampling p{
      .scores = scores.as<float>(),
      .uniforms = uniforms.as<double>(),
      .out = out.as<std::int32_t>(),
      .weights = static_cast<double*>(weights.defined() ? weights.data : scratch.view().data),
      .vocabulary = scores.size(1),
      .options = options};
  call.check(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  sizeof(Histogram)));
  call.launch_with_shared(sample_kernel, scores.size(0), kThreads, sizeof(Histogram), p);
}

}  // namespace flashmha::cuda::ops
