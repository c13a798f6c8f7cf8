// Tables of the rotary embedding, with the length extensions that checkpoints use.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "flashmha/ops.h"
#include "flashmha/tensor.h"

namespace flashmha::nn {

enum class RotaryScaling : std::uint8_t {
  none,
  linear,       // positions divided by factor (Chen et al. 2023)
  dynamic_ntk,  // base grows with the longest sequence seen beyond max_position_embeddings
  yarn,         // by wavelength, with an attention factor (Peng et al. 2023, "YaRN")
  llama3,       // by wavelength (Llama 3.1)
};

// Names and defaults are those of Transformers' rope parameters.
struct RotaryConfig {
  std::int64_t head_dim = 0;
  double partial_rotary_factor = 1.0;  // rotary_dim = head_dim * factor, even
  double rope_theta = 10000.0;
  bool interleaved = false;  // pairs (2i, 2i+1) instead of (i, i + rotary_dim / 2)
  std::int64_t max_position_embeddings = 2048;
  RotaryScaling scaling = RotaryScaling::none;
  double factor = 1.0;  // linear, dynamic_ntk, yarn, llama3
  // yarn and llama3: length of the pre-training; 0: max_position_embeddings.
  std::int64_t original_max_position_embeddings = 0;
  std::optional<double> attention_factor;  // yarn; default from factor and mscale
  double beta_fast = 32.0;                 // yarn
  double beta_slow = 1.0;                  // yarn
  double mscale = 0.0;                     // yarn; 0: not given
  double mscale_all_dim = 0.0;             // yarn; 0: not given
  bool truncate = true;                    // yarn: round the correction range outwards
  double low_freq_factor = 1.0;            // llama3
  double high_freq_factor = 4.0;           // llama3

  std::int64_t rotary_dim() const;
  bool operator==(const RotaryConfig&) const = default;
};

// Angle per position of every pair: rotary_dim / 2 values. seqlen matters to dynamic_ntk only.
std::vector<double> rotary_inverse_frequencies(const RotaryConfig& config, std::int64_t seqlen);

// Factor on cos and sin: yarn's attention factor, 1 for the others.
double rotary_attention_scaling(const RotaryConfig& config);

// Grows its tables when asked for more positions. Shared by all layers of a model.
class RotaryEmbedding {
 public:
  // Throws invalid_argument for an odd or empty rotary_dim, or factors that make no sense.
  explicit RotaryEmbedding(const RotaryConfig& config, Device device = {});

  // float32 tables of at least num_positions rows, computed in double; the views stay valid until
  // the next call, so layers that share one belong to one thread at a time. dynamic_ntk:
  // frequencies are those of the longest sequence asked for so far, and the original ones again
  // once num_positions < max_position_embeddings (as in Transformers).
  ops::RotaryTables tables(std::int64_t num_positions);

  // The numbers of the tables' rows, int32 [rows of the tables]: positions, ready on the device.
  const TensorView& row_numbers() const { return row_numbers_; }

  const RotaryConfig& config() const { return config_; }

 private:
  void build(std::int64_t num_positions, std::int64_t frequency_seqlen);

  RotaryConfig config_;
  Device device_;
  Tensor cos_;
  Tensor sin_;
  Tensor row_numbers_;
  std::int64_t frequency_seqlen_ = 0;  // dynamic_ntk: the length that the tables were made for
};

}  // namespace flashmha::nn
