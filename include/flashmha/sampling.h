// The next token from the logits of a model.
//
// Filters are those of Hugging Face's Transformers, in its order: repetition penalty, temperature,
// top-k, top-p, min-p.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace flashmha::model {

struct SamplingOptions {
  // Scores are divided by it; 0: the most likely token (the first of equals), nothing is drawn.
  double temperature = 0.0;
  // Only tokens whose score reaches that of the top_k-th; 0: all. Ties with it stay.
  std::int64_t top_k = 0;
  // Of the tokens by falling probability, those before whose turn the sum is below top_p; at least
  // one. 1: all. Of equal tokens the lower index comes first. (Holtzman et al. 2020.)
  double top_p = 1.0;
  // Only tokens of at least min_p times the highest probability. (Nguyen et al. 2024.)
  double min_p = 0.0;
  // Scores of tokens that were seen are divided by it if positive, else multiplied. Also with
  // temperature 0. (Keskar et al. 2019.)
  double repetition_penalty = 1.0;
  std::uint64_t seed = 0;
};

// Throws invalid_argument unless temperature >= 0 and finite, top_k >= 0, 0 <= top_p <= 1,
// 0 <= min_p <= 1, repetition_penalty > 0 and finite.
void check_sampling(const SamplingOptions& options);

// Where in the random sequence of a seed a token is drawn. Equal positions give equal draws, on
// every machine and in every order.
struct DrawPosition {
  std::uint64_t row = 0;
  std::uint64_t step = 0;
};

// Scores of seen tokens, penalised in place. scores [vocab_size]; seen: any number of ids in
// [0, vocab_size), in any order; repeated ones count once.
void penalise_repetition(std::span<float> scores, std::span<const std::int64_t> seen,
                         double repetition_penalty);

// The probabilities [vocab_size] that a token is drawn from, after all filters: exactly 0 where
// filtered, 1 in total. logits [vocab_size] may hold -inf (a token that never comes), but neither
// NaN nor +inf, nor -inf alone: throws invalid_argument.
std::vector<double> token_probabilities(std::span<const float> logits,
                                        std::span<const std::int64_t> seen,
                                        const SamplingOptions& options);

// Draws a token from them; the rules for logits are the same.
std::int64_t sample_token(std::span<const float> logits, std::span<const std::int64_t> seen,
                          const SamplingOptions& options, DrawPosition position = {});

}  // namespace flashmha::model
