// Documents as tokens, and the part of them that is held out.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "flashmha/dataset.h"
#include "model/mix.h"

namespace flashmha::train {
namespace {

// The documents whose flag is (not) set.
Corpus select(const Corpus& corpus, const std::vector<bool>& flags, bool wanted) {
  Corpus part;
  for (std::int64_t index = 0; index < corpus.num_documents(); ++index) {
    if (flags[static_cast<std::size_t>(index)] == wanted) part.add(corpus.document(index));
  }
  return part;
}

CorpusSplit split_document(const Corpus& corpus, std::int64_t budget) {
  const std::span<const std::int32_t> document = corpus.document(0);
  const auto held_out =
      static_cast<std::size_t>(std::clamp<std::int64_t>(budget, 2, corpus.num_tokens() / 2));
  CorpusSplit split;
  split.training.add(document.first(document.size() - held_out));
  split.evaluation.add(document.last(held_out));
  return split;
}

// Documents without a pair of tokens have nothing to predict.
bool is_usable(const Corpus& corpus, std::int64_t index) {
  return corpus.document(index).size() >= 2;
}

std::vector<bool> choose(const Corpus& corpus, std::int64_t budget) {
  const std::int64_t count = corpus.num_documents();
  std::vector<bool> chosen(static_cast<std::size_t>(count), false);
  const Shuffle order(count, /*seed=*/0, /*epoch=*/0);
  std::int64_t shortest = -1;
  std::int64_t num_chosen = 0;
  for (std::int64_t position = 0; position < count; ++position) {
    const std::int64_t index = order(position);
    if (!is_usable(corpus, index)) continue;
    const auto length = static_cast<std::int64_t>(corpus.document(index).size());
    if (shortest < 0 || corpus.document(index).size() < corpus.document(shortest).size()) {
      shortest = index;
    }
    if (length > budget) continue;
    budget -= length;
    chosen[static_cast<std::size_t>(index)] = true;
    ++num_chosen;
  }
  if (num_chosen == 0 && shortest >= 0) chosen[static_cast<std::size_t>(shortest)] = true;
  return chosen;
}

}  // namespace

void Corpus::add(std::span<const std::int64_t> document) {
  const std::size_t before = tokens_.size();
  tokens_.reserve(before + document.size());
  for (const std::int64_t token : document) {
    if (token < 0 || token > std::numeric_limits<std::int32_t>::max()) {
      tokens_.resize(before);
      check(false, "[Corpus.add] tokens must be in [0, 2^31); got {}", token);
    }
    tokens_.push_back(static_cast<std::int32_t>(token));
  }
  starts_.push_back(static_cast<std::int64_t>(tokens_.size()));
}

void Corpus::add(std::span<const std::int32_t> document) {
  check(std::ranges::all_of(document, [](std::int32_t token) { return token >= 0; }),
        "[Corpus.add] tokens must not be negative");
  tokens_.insert(tokens_.end(), document.begin(), document.end());
  starts_.push_back(static_cast<std::int64_t>(tokens_.size()));
}

std::span<const std::int32_t> Corpus::document(std::int64_t index) const {
  check(index >= 0 && index < num_documents(), "[Corpus.document] index ({}) must be in [0, {})",
        index, num_documents());
  return tokens().subspan(static_cast<std::size_t>(start(index)),
                          static_cast<std::size_t>(start(index + 1) - start(index)));
}

std::int32_t Corpus::largest_token() const {
  return tokens_.empty() ? -1 : *std::ranges::max_element(tokens_);
}

std::uint64_t Corpus::fingerprint() const {
  std::uint64_t value = 0;
  for (const std::int32_t token : tokens_)
    value = model::mix(value ^ static_cast<std::uint64_t>(token));
  for (const std::int64_t start : starts_)
    value = model::mix(value ^ static_cast<std::uint64_t>(start));
  return value;
}

CorpusSplit split_corpus(Corpus corpus, double evaluation_fraction) {
  check(evaluation_fraction >= 0.0 && evaluation_fraction <= 0.5,
        "[split_corpus] evaluation_fraction ({}) must be in [0, 0.5]", evaluation_fraction);
  std::int64_t num_usable = 0;
  for (std::int64_t index = 0; index < corpus.num_documents(); ++index) {
    num_usable += is_usable(corpus, index) ? 1 : 0;
  }
  if (evaluation_fraction == 0.0 || num_usable == 0 || corpus.num_tokens() < 4) {
    return {.training = std::move(corpus), .evaluation = {}};
  }
  const auto budget = static_cast<std::int64_t>(
      std::floor(evaluation_fraction * static_cast<double>(corpus.num_tokens())));
  if (corpus.num_documents() == 1) return split_document(corpus, budget);
  if (num_usable == 1) return {.training = std::move(corpus), .evaluation = {}};
  const std::vector<bool> chosen = choose(corpus, budget);
  return {.training = select(corpus, chosen, false), .evaluation = select(corpus, chosen, true)};
}

}  // namespace flashmha::train
