// Weights by name: random values, copies between models.
#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <string>

#include "core/check.h"
#include "core/parallel.h"
#include "flashmha/model.h"

namespace flashmha::model {
namespace {

// The finaliser of SplitMix64 (Steele, Lea & Flood 2014): an integer in, 64 well-mixed bits out.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// FNV-1a, 64 bits.
std::uint64_t hash(const std::string& text) {
  std::uint64_t value = 0xcbf29ce484222325u;
  for (const char c : text)
    value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return value;
}

// In (0, 1): never 0, so that its logarithm is finite.
double uniform(std::uint64_t bits) {
  return (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53;
}

// values[i] = a standard normal number that depends on key and i only, times scale (Box & Muller).
void fill_normal(const TensorView& values, std::uint64_t key, double scale) {
  constexpr std::int64_t kChunk = 1 << 14;
  float* data = values.as<float>();
  const std::int64_t count = values.numel();
  parallel_for((count + kChunk - 1) / kChunk, num_threads(), [&](std::int64_t chunk, int) {
    const std::int64_t end = std::min(count, (chunk + 1) * kChunk);
    for (std::int64_t i = chunk * kChunk; i < end; i += 2) {
      const auto counter = key + static_cast<std::uint64_t>(i);
      const double radius = scale * std::sqrt(-2.0 * std::log(uniform(mix(counter))));
      const double angle = 2.0 * std::numbers::pi * uniform(mix(counter + 1));
      data[i] = static_cast<float>(radius * std::cos(angle));
      if (i + 1 < end) data[i + 1] = static_cast<float>(radius * std::sin(angle));
    }
  });
}

}  // namespace

void CausalLM::init_weights(std::uint64_t seed) {
  visit([&](const std::string& name, nn::Parameter& parameter) {
    if (parameter.value.view().rank() < 2) return;
    const Tensor values = Tensor::empty(parameter.value.shape(), DType::float32);
    fill_normal(values, mix(seed ^ hash(name)), config_.initializer_range);
    copy(values, parameter.value);
  });
}

void copy_weights(CausalLM& source, CausalLM& destination) {
  std::map<std::string, TensorView> weights;
  source.visit(
      [&](const std::string& name, nn::Parameter& parameter) { weights[name] = parameter.value; });
  std::size_t num_copied = 0;
  destination.visit([&](const std::string& name, nn::Parameter& parameter) {
    const auto weight = weights.find(name);
    check(weight != weights.end(), "[copy_weights] the source has no {}", name);
    check(weight->second.shape == parameter.value.shape(),
          "[copy_weights] {} must have the same shape in both models; got {} and {}", name,
          to_string(weight->second), to_string(parameter.value));
    copy(weight->second, parameter.value);
    ++num_copied;
  });
  check(num_copied == weights.size(),
        "[copy_weights] the source has {} tensors, the destination only {}", weights.size(),
        num_copied);
}

}  // namespace flashmha::model
