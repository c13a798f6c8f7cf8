// Attention layers with random weights, and what they are compared by.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/nn/support.h"

namespace flashmha::tests {

// The plain and the flash layer with the same weights.
struct LayerPair {
  std::unique_ptr<nn::MultiHeadAttention> plain;
  std::unique_ptr<nn::FlashMultiHeadAttention> flash;

  LayerPair(const nn::AttentionConfig& config, Random& random, DType dtype = DType::float32);
  // The same weights in another dtype.
  LayerPair(LayerPair& source, DType dtype);
};

// hidden 24, 4 heads of 8 over 2 key heads, rotary.
nn::AttentionConfig small_config();
// That and q/k norm, biases, window 5, softcap and sinks.
nn::AttentionConfig full_config();

// Gradients of everything: the inputs' and every parameter's.
struct LayerRun {
  Tensor out;
  nn::AttentionLayerGradients gradients;
  std::vector<Tensor> parameters;
  std::vector<std::string> names;
};

// Forward and backward.
LayerRun run_layer(nn::MultiHeadAttention& layer, const nn::AttentionInputs& inputs,
                   const TensorView& dout);

void expect_equal_runs(const LayerRun& actual, const LayerRun& expected, double tolerance);

// The rule of FlashAttention's own tests: the largest error against an exact result is at most
// twice that of a plain implementation in the same dtype, three times in gradients, plus half a
// unit in the last place of the largest value. The geometric mean over several draws is judged:
// both errors are roundings, and in one draw that of a small tensor whose terms cancel (the
// gradient of a bias of keys) may be small by luck, where a fault shows in every draw.
class AccuracyRule {
 public:
  // what: "out", or whose gradient.
  void add(const std::string& what, const TensorView& actual, const TensorView& plain,
           const TensorView& exact);
  void expect() const;

 private:
  // Of error to what is allowed.
  struct Ratios {
    double log_sum = 0.0;
    int count = 0;
  };
  std::map<std::string, Ratios> ratios_;
};

// Real tokens of row b of a padded batch.
std::vector<std::int64_t> real_columns(const TensorView& mask, std::int64_t b);

// x [1, n, hidden]: those columns of row b of x [batch, seqlen, hidden].
Tensor pick(const TensorView& x, std::int64_t b, const std::vector<std::int64_t>& columns);

}  // namespace flashmha::tests
