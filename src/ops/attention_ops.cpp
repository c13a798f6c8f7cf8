// Checks and dispatch: the pieces of attention with materialised scores.
#include "ops/rules.h"

namespace flashmha::ops {
namespace {

void check_scores(std::string_view function, const SoftmaxOptions& options,
                  std::initializer_list<Named> matrices) {
  require_floating(function, matrices);
  require_rows(function, matrices);
  const Named& first = *matrices.begin();
  check(first.view.rank() == 4, "[{}] {} must be [batch,num_heads,seqlen_q,seqlen_k]; got {}",
        function, first.name, first.view);
  for (const Named& matrix : matrices)
    require_shape(function, matrix, first.view.shape);
  check(options.softcap >= 0.0f, "[{}] softcap ({}) must not be negative", function,
        options.softcap);
  check(options.window_left >= -1 && options.window_right >= -1,
        "[{}] window sides must be -1 (unbounded) or more; got ({}, {})", function,
        options.window_left, options.window_right);
  if (options.mask.defined()) {
    require_dtype(function, {"mask", options.mask}, DType::boolean);
    (void)options.mask.broadcast_to(first.view.shape);  // throws if it cannot be
  }
  if (options.sinks.defined()) {
    require_floating(function, {{"sinks", options.sinks}});
    require_shape(function, {"sinks", options.sinks}, {first.view.size(1)});
    require_contiguous(function, {"sinks", options.sinks});
  }
}

void check_lse(std::string_view function, const TensorView& lse, const TensorView& scores) {
  require_dtype(function, {"lse", lse}, DType::float32);
  require_shape(function, {"lse", lse}, leading_shape(scores.shape));
  require_contiguous(function, {"lse", lse});
}

}  // namespace

void softmax(const TensorView& scores, const SoftmaxOptions& options,
             const TensorView& probabilities, const TensorView& lse, Stream stream) {
  check_scores("softmax", options, {{"scores", scores}, {"probabilities", probabilities}});
  if (lse.defined()) check_lse("softmax", lse, scores);
  const OpsTable& table = backend("softmax", {{"scores", scores},
                                              {"probabilities", probabilities},
                                              {"lse", lse},
                                              {"mask", options.mask},
                                              {"sinks", options.sinks}});
  if (scores.numel() > 0) table.softmax(scores, options, probabilities, lse, stream);
}

void softmax_backward(const TensorView& dprobabilities, const SoftmaxSaved& saved,
                      const SoftmaxOptions& options, const TensorView& dscores,
                      const TensorView& dsinks, Stream stream) {
  constexpr std::string_view kName = "softmax_backward";
  check_scores(kName, options,
               {{"probabilities", saved.probabilities},
                {"dprobabilities", dprobabilities},
                {"dscores", dscores}});
  if (options.softcap > 0.0f) {
    check_scores(kName, options,
                 {{"probabilities", saved.probabilities}, {"scores", saved.scores}});
  }
  if (dsinks.defined()) {
    require_given(kName, {"sinks", options.sinks});
    require_dtype(kName, {"dsinks", dsinks}, DType::float32);
    require_shape(kName, {"dsinks", dsinks}, options.sinks.shape);
    require_contiguous(kName, {"dsinks", dsinks});
    check_lse(kName, saved.lse, saved.probabilities);
  }
  const OpsTable& table = backend(kName, {{"probabilities", saved.probabilities},
                                          {"dprobabilities", dprobabilities},
                                          {"scores", saved.scores},
                                          {"lse", saved.lse},
                                          {"dscores", dscores},
                                          {"sinks", options.sinks},
                                          {"dsinks", dsinks}});
  if (dscores.numel() > 0) {
    table.softmax_backward(dprobabilities, saved, options, dscores, dsinks, stream);
  }
}

void attention_dropout(const TensorView& x, const Dropout& dropout, const TensorView& y,
                       Stream stream) {
  check(dropout.p >= 0.0f && dropout.p < 1.0f, "[attention_dropout] p ({}) must be in [0, 1)",
        dropout.p);
  check_scores("attention_dropout", {}, {{"x", x}, {"y", y}});
  const OpsTable& table = backend("attention_dropout", {{"x", x}, {"y", y}});
  if (x.numel() > 0) table.attention_dropout(x, dropout, y, stream);
}

}  // namespace flashmha::ops
