#include "flashmha/random.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"
#include "core/format.h"
#include "core/parallel.h"
#include "core/visit.h"
#include "model/mix.h"

namespace flashmha::model {
namespace {

constexpr std::int64_t kChunk = 1 << 14;  // elements of one task; even, pairs are drawn together

// In (0, 1): never 0, so that its logarithm is finite.
double uniform(std::uint64_t bits) {
  return (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53;
}

// Calls body(begin, end) for parts of [0, count).
template <class Body>
void for_each_chunk(std::int64_t count, Body body) {
  parallel_for((count + kChunk - 1) / kChunk, num_threads(), [&](std::int64_t chunk, int) {
    body(chunk * kChunk, std::min(count, (chunk + 1) * kChunk));
  });
}

}  // namespace

// Pairs of elements by Box & Muller (1958).
void fill_normal(const TensorView& values, std::uint64_t seed, double standard_deviation) {
  check(values.is_contiguous(), "[fill_normal] values must be contiguous; got {}", values);
  if (values.device.type != DeviceType::cpu) {
    const Tensor host = Tensor::empty(values.shape, values.dtype);
    fill_normal(host, seed, standard_deviation);
    return copy(host, values);
  }
  const std::uint64_t key = mix(seed);
  visit_floating(values.dtype, [&]<class T>(T) {
    T* data = values.as<T>();
    for_each_chunk(values.numel(), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; i += 2) {
        const auto counter = key + static_cast<std::uint64_t>(i);
        const double radius =
            standard_deviation * std::sqrt(-2.0 * std::log(uniform(mix(counter))));
        const double angle = 2.0 * std::numbers::pi * uniform(mix(counter + 1));
        data[i] = static_cast<T>(static_cast<float>(radius * std::cos(angle)));
        if (i + 1 < end) data[i + 1] = static_cast<T>(static_cast<float>(radius * std::sin(angle)));
      }
    });
  });
}

void fill_integers(const TensorView& values, std::uint64_t seed, std::int64_t bound) {
  check(values.is_contiguous() && bound > 0,
        "[fill_integers] values must be contiguous and bound positive; got {} and {}", values,
        bound);
  check(values.dtype == DType::int32 || values.dtype == DType::int64,
        "[fill_integers] values must be int32 or int64; got {}", values);
  if (values.device.type != DeviceType::cpu) {
    const Tensor host = Tensor::empty(values.shape, values.dtype);
    fill_integers(host, seed, bound);
    return copy(host, values);
  }
  const std::uint64_t key = mix(seed);
  visit_dtype(values.dtype, [&]<class T>(T) {
    if constexpr (std::is_same_v<T, std::int32_t> || std::is_same_v<T, std::int64_t>) {
      T* data = values.as<T>();
      for_each_chunk(values.numel(), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::uint64_t bits = mix(key + static_cast<std::uint64_t>(i));
          data[i] = static_cast<T>(bits % static_cast<std::uint64_t>(bound));
        }
      });
    }
  });
}

}  // namespace flashmha::model
