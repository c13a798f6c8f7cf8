// Checks and dispatch: choosing tokens.
#include <cmath>

#include "ops/rules.h"

namespace flashmha::ops {
namespace {

void require_scores(std::string_view function, const TensorView& scores) {
  require_dtype(function, {"scores", scores}, DType::float32);
  require_contiguous(function, {"scores", scores});
  check(scores.rank() == 2 && scores.size(1) > 0,
        "[{}] scores must be [rows,vocabulary] with a vocabulary; got {}", function, scores);
}

}  // namespace

void penalise(const TensorView& scores, const TensorView& seen, float penalty, Stream stream) {
  require_scores("penalise", scores);
  require_dtype("penalise", {"seen", seen}, DType::int32);
  require_contiguous("penalise", {"seen", seen});
  check(seen.rank() == 2 && seen.size(0) == scores.size(0),
        "[penalise] seen must be [{},n]; got {}", scores.size(0), seen);
  check(penalty > 0.0f && std::isfinite(penalty),
        "[penalise] penalty must be positive and finite; got {}", penalty);
  const OpsTable& table = backend("penalise", {{"scores", scores}, {"seen", seen}});
  if (seen.numel() > 0) table.penalise(scores, seen, penalty, stream);
}

void sample(const TensorView& scores, const SampleOptions& options, const TensorView& uniforms,
            const TensorView& out, const TensorView& weights, Stream stream) {
  require_scores("sample", scores);
  const Shape rows{scores.size(0)};
  require_dtype("sample", {"uniforms", uniforms}, DType::float64);
  require_shape("sample", {"uniforms", uniforms}, rows);
  require_contiguous("sample", {"uniforms", uniforms});
  require_dtype("sample", {"out", out}, DType::int32);
  require_shape("sample", {"out", out}, rows);
  require_contiguous("sample", {"out", out});
  if (weights.defined()) {
    require_dtype("sample", {"weights", weights}, DType::float64);
    require_shape("sample", {"weights", weights}, scores.shape);
    require_contiguous("sample", {"weights", weights});
  }
  check(
      options.temperature > 0.0 && std::isfinite(options.temperature) && options.top_k >= 0 &&
          options.top_p >= 0.0 && options.top_p <= 1.0 && options.min_p >= 0.0 &&
          options.min_p <= 1.0,
      "[sample] temperature ({}) must be positive and finite, top_k ({}) not negative, top_p ({}) "
      "and min_p ({}) in [0, 1]",
      options.temperature, options.top_k, options.top_p, options.min_p);
  const OpsTable& table = backend(
      "sample", {{"scores", scores}, {"uniforms", uniforms}, {"out", out}, {"weights", weights}});
  if (scores.numel() > 0) table.sample(scores, options, uniforms, out, weights, stream);
}

}  // namespace flashmha::ops
