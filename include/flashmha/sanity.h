// Is flash attention the same model as plain attention? What `flashmha sanity-check` runs.
//
// Every result of the flash model is compared with a reference: the plain model in float32 with the
// same (rounded) weights. Rule: its error is at most `slack` times the error of the plain model in
// the same dtype (for gradients: its largest error of any tensor), plus a floor for rounding. An
// error is the largest difference over the largest expected magnitude; inf and nan at other places
// than expected count as an infinite error.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "flashmha/model.h"

namespace flashmha::model {

// max |actual - expected| / max |expected| (no division if all expected are 0); infinity if inf or
// nan are at different places. Floating tensors of equal shapes.
double relative_error(const TensorView& actual, const TensorView& expected);

// One line of the report.
struct Check {
  std::string name;    // "logits, left padding"
  std::string detail;  // "39 tensors, worst: model.norm.weight"; may be empty
  double error = 0.0;
  double tolerance = 0.0;

  bool passed() const { return error <= tolerance; }  // false for NaN
};

using CheckReport = std::function<void(const Check& check)>;

// The same weights three times: what is checked, its baseline, and the truth for both.
struct ModelTrio {
  CausalLM flash;
  CausalLM plain;
  CausalLM reference;  // plain, float32

  // config.attention_kind is set for each.
  ModelTrio(const ModelConfig& config, std::uint64_t seed);
};

struct SanityOptions {
  std::int64_t batch = 2;
  std::int64_t seqlen = 64;
  std::int64_t new_tokens = 12;
  std::uint64_t seed = 1;
  // How many times plain's error is allowed. Both errors are draws of the same roundings: with 2,
  // one check in several thousand failed on tiny models with random seeds.
  double slack = 3.0;
};

// Dense: logits, loss, every gradient.
void check_dense(ModelTrio& models, const SanityOptions& options, const CheckReport& report);

// Sequences of different lengths padded on the left and on the right, against each sequence alone:
// logits of the real tokens; loss and every gradient of the padded batch.
void check_padding(ModelTrio& models, const SanityOptions& options, const CheckReport& report);

// Logits through each cache (prefill, a chunk of several tokens, then one by one) against a forward
// without a cache; greedy tokens of left-padded prompts likewise. A model with a sliding window is
// checked with the sliding cache, others with the dynamic, static and paged ones.
void check_caches(ModelTrio& models, const SanityOptions& options, const CheckReport& report);

// All of the above.
void check_model(ModelTrio& models, const SanityOptions& options, const CheckReport& report);

}  // namespace flashmha::model
