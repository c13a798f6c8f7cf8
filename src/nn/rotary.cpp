#include "flashmha/rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "core/check.h"
#include "core/located.h"

namespace flashmha::nn {
namespace {

std::int64_t original_length(const RotaryConfig& config) {
  return config.original_max_position_embeddings > 0 ? config.original_max_position_embeddings
                                                     : config.max_position_embeddings;
}

std::vector<double> frequencies_of_base(double base, std::int64_t rotary_dim) {
  std::vector<double> frequencies(static_cast<std::size_t>(rotary_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] =
        std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim));
  }
  return frequencies;
}

// The base stretched so that the longest sequence ends where the trained one did.
double dynamic_base(const RotaryConfig& config, std::int64_t seqlen) {
  const auto dim = static_cast<double>(config.rotary_dim());
  const auto trained = static_cast<double>(config.max_position_embeddings);
  const double length = std::max(static_cast<double>(seqlen), trained);
  const double stretch = config.factor * length / trained - (config.factor - 1.0);
  return config.rope_theta * std::pow(stretch, dim / (dim - 2.0));
}

// Peng et al. 2023, section 3.2: the pair that turns `turns` times over the trained length.
double yarn_pair(const RotaryConfig& config, double turns) {
  const auto dim = static_cast<double>(config.rotary_dim());
  const auto trained = static_cast<double>(original_length(config));
  return dim * std::log(trained / (turns * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(config.rope_theta));
}

// Pairs that turn often keep their frequency, pairs that turn seldom are slowed by the factor, and
// those between are mixed.
void scale_yarn(const RotaryConfig& config, std::vector<double>& frequencies) {
  double low = yarn_pair(config, config.beta_fast);
  double high = yarn_pair(config, config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.rotary_dim() - 1));
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double slowed = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] *= (1.0 - slowed) + slowed / config.factor;
  }
}

// Llama 3.1: as YaRN, but by wavelength and with other bounds.
void scale_llama3(const RotaryConfig& config, std::vector<double>& frequencies) {
  const auto trained = static_cast<double>(original_length(config));
  for (double& frequency : frequencies) {
    const double turns = trained * frequency / (2.0 * std::numbers::pi);
    const double kept = std::clamp(
        (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor), 0.0,
        1.0);
    frequency *= kept + (1.0 - kept) / config.factor;
  }
}

void check_config(const RotaryConfig& config) {
  const std::int64_t dim = config.rotary_dim();
  check(dim >= 2 && dim % 2 == 0 && dim <= config.head_dim,
        "[RotaryEmbedding] rotary_dim must be even, at least 2 and at most head_dim; got {} from "
        "head_dim {} and partial_rotary_factor {}",
        dim, config.head_dim, config.partial_rotary_factor);
  check(config.rope_theta > 1.0, "[RotaryEmbedding] rope_theta ({}) must be above 1",
        config.rope_theta);
  check(config.max_position_embeddings > 0,
        "[RotaryEmbedding] max_position_embeddings ({}) must be positive",
        config.max_position_embeddings);
  check(config.factor >= 1.0, "[RotaryEmbedding] factor ({}) must be at least 1", config.factor);
  check(config.scaling != RotaryScaling::dynamic_ntk || dim > 2,
        "[RotaryEmbedding] dynamic_ntk needs a rotary_dim above 2; got {}", dim);
  check(config.scaling != RotaryScaling::llama3 || config.high_freq_factor > config.low_freq_factor,
        "[RotaryEmbedding] high_freq_factor ({}) must be above low_freq_factor ({})",
        config.high_freq_factor, config.low_freq_factor);
}

}  // namespace

std::int64_t RotaryConfig::rotary_dim() const {
  return static_cast<std::int64_t>(static_cast<double>(head_dim) * partial_rotary_factor);
}

std::vector<double> rotary_inverse_frequencies(const RotaryConfig& config, std::int64_t seqlen) {
  const bool dynamic = config.scaling == RotaryScaling::dynamic_ntk;
  std::vector<double> frequencies = frequencies_of_base(
      dynamic ? dynamic_base(config, seqlen) : config.rope_theta, config.rotary_dim());
  switch (config.scaling) {
    case RotaryScaling::none:
    case RotaryScaling::dynamic_ntk: break;
    case RotaryScaling::linear:
      for (double& frequency : frequencies)
        frequency /= config.factor;
      break;
    case RotaryScaling::yarn: scale_yarn(config, frequencies); break;
    case RotaryScaling::llama3: scale_llama3(config, frequencies); break;
  }
  return frequencies;
}

double rotary_attention_scaling(const RotaryConfig& config) {
  if (config.scaling != RotaryScaling::yarn) return 1.0;
  if (config.attention_factor) return *config.attention_factor;
  const auto temperature = [&](double mscale) {
    return config.factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(config.factor) + 1.0;
  };
  if (config.mscale != 0.0 && config.mscale_all_dim != 0.0) {
    return temperature(config.mscale) / temperature(config.mscale_all_dim);
  }
  return temperature(1.0);
}

RotaryEmbedding::RotaryEmbedding(const RotaryConfig& config, Device device)
    : config_(config), device_(device) {
  check_config(config_);
}

ops::RotaryTables RotaryEmbedding::tables(std::int64_t num_positions) {
  const std::int64_t trained = config_.max_position_embeddings;
  std::int64_t frequency_seqlen = trained;
  if (config_.scaling == RotaryScaling::dynamic_ntk && num_positions >= trained) {
    frequency_seqlen = std::max(frequency_seqlen_, num_positions);
  }
  const std::int64_t rows = cos_.defined() ? cos_.size(0) : 0;
  if (num_positions > rows) {
    build(std::max(num_positions, 2 * rows), frequency_seqlen);
  } else if (frequency_seqlen != frequency_seqlen_) {
    build(rows, frequency_seqlen);
  }
  return {.cos = cos_, .sin = sin_, .interleaved = config_.interleaved};
}

// Angles in double precision: in float, position 100000 would be off by a hundredth of a radian.
void RotaryEmbedding::build(std::int64_t num_positions, std::int64_t frequency_seqlen) {
  const std::vector<double> frequencies = rotary_inverse_frequencies(config_, frequency_seqlen);
  const double scaling = rotary_attention_scaling(config_);
  const auto half = static_cast<std::int64_t>(frequencies.size());
  const Tensor cos = Tensor::empty({num_positions, half}, DType::float32);
  const Tensor sin = Tensor::empty({num_positions, half}, DType::float32);
  for (std::int64_t position = 0; position < num_positions; ++position) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) * frequencies[static_cast<std::size_t>(i)];
      cos.as<float>()[position * half + i] = static_cast<float>(scaling * std::cos(angle));
      sin.as<float>()[position * half + i] = static_cast<float>(scaling * std::sin(angle));
    }
  }
  const Tensor numbers = Tensor::empty({num_positions}, DType::int32);
  std::iota(numbers.as<std::int32_t>(), numbers.as<std::int32_t>() + num_positions, 0);
  cos_ = to_device(cos, device_);
  sin_ = to_device(sin, device_);
  row_numbers_ = to_device(numbers, device_);
  frequency_seqlen_ = frequency_seqlen;
}

}  // namespace flashmha::nn
