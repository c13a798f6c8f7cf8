// Beam search against an exhaustive search, and against its definition written out: every
// hypothesis a list of tokens whose scores come from a forward of its own.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "flashmha/generation.h"
#include "tests/model/fixture.h"

namespace flashmha {
namespace {

using model::CacheKind;
using model::CausalLM;
using model::EarlyStopping;
using model::Generated;
using model::GenerationOptions;
using model::ModelConfig;
using namespace test;

struct Hypothesis {
  Tokens tokens;  // new ones
  double score = 0.0;
  bool valid = true;
};

bool contains(const Tokens& tokens, std::int64_t token) {
  return std::ranges::find(tokens, token) != tokens.end();
}

// Log probabilities of the next token, by a forward of the whole sequence; remembered.
class Oracle {
 public:
  Oracle(const CausalLM& model, const Tokens& prompt, double penalty)
      : model_(model), prompt_(prompt), penalty_(penalty) {}

  const std::vector<double>& next(const Tokens& tokens) {
    auto [entry, is_new] = known_.try_emplace(tokens);
    if (!is_new) return entry->second;
    Tokens all = prompt_;
    all.insert(all.end(), tokens.begin(), tokens.end());
    const Tensor ids = Tensor::from(std::span<const std::int64_t>(all), {1, std::ssize(all)});
    const Tensor logits = model_.forward({.input_ids = ids, .last_logits_only = true});
    double sum = 0.0;
    for (std::int64_t i = 0; i < logits.numel(); ++i)
      sum += std::exp(static_cast<double>(logits.as<float>()[i]));
    for (std::int64_t i = 0; i < logits.numel(); ++i) {
      double score = static_cast<double>(logits.as<float>()[i]) - std::log(sum);
      if (contains(all, i)) score *= score < 0 ? penalty_ : 1.0 / penalty_;
      entry->second.push_back(score);
    }
    return entry->second;
  }

 private:
  const CausalLM& model_;
  Tokens prompt_;
  double penalty_;
  std::map<Tokens, std::vector<double>> known_;
};

void sort_by_score(std::vector<Hypothesis>& list) {
  std::ranges::stable_sort(list, [](const auto& a, const auto& b) { return a.score > b.score; });
}

// Of the first `count` hypotheses, how little decides between one and the next. Two whose scores
// are closer than float32 can tell may come in either order: such a search proves nothing.
constexpr double kNoise = 1e-5;
constexpr double kNever = -1e9;  // the score of what may not be chosen

double smallest_gap(const std::vector<Hypothesis>& ranked, std::size_t count) {
  double gap = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < count && i + 1 < ranked.size(); ++i) {
    if (ranked[i + 1].score > kNever / 2)
      gap = std::min(gap, ranked[i].score - ranked[i + 1].score);
  }
  return gap;
}

double penalised(double score, std::size_t length, double length_penalty) {
  return score / std::pow(static_cast<double>(length), length_penalty);
}

struct Search {
  std::vector<Hypothesis> finished;
  double smallest_gap = std::numeric_limits<double>::infinity();
};

// As Transformers' _beam_search computes it for one prompt: lists of fixed size, in which -1e9
// marks what may not be chosen. Its running list begins with copies of the prompt at -1e9.
Search defined_search(Oracle& oracle, const GenerationOptions& options) {
  Search search;
  std::vector<Hypothesis>& finished = search.finished;
  const auto num_beams = static_cast<std::size_t>(options.num_beams);
  const auto max_length = static_cast<std::size_t>(options.max_new_tokens);
  const std::size_t num_stops = options.stop_token_ids.size();
  const std::size_t to_keep = std::max<std::size_t>(2, 1 + num_stops) * num_beams;
  std::vector<Hypothesis> running(num_beams, {.score = kNever});
  running[0].score = 0.0;
  finished.assign(num_beams, {.score = kNever, .valid = false});
  bool improvable = true;
  for (std::size_t length = 1; length <= max_length && improvable; ++length) {
    std::vector<Hypothesis> ranked;
    for (const Hypothesis& beam : running) {
      const std::vector<double>& scores = oracle.next(beam.tokens);
      for (std::size_t token = 0; token < scores.size(); ++token) {
        ranked.push_back({beam.tokens, beam.score + scores[token]});
        ranked.back().tokens.push_back(static_cast<std::int64_t>(token));
      }
    }
    sort_by_score(ranked);
    search.smallest_gap = std::min(search.smallest_gap, smallest_gap(ranked, to_keep));
    ranked.resize(std::min(to_keep, ranked.size()));
    const bool all_finished = std::ranges::all_of(finished, &Hypothesis::valid);
    const bool full = all_finished && options.early_stopping == EarlyStopping::when_found;
    running.clear();
    for (std::size_t i = 0; i < ranked.size(); ++i) {
      const bool ends =
          contains(options.stop_token_ids, ranked[i].tokens.back()) || length == max_length;
      running.push_back(ranked[i]);
      if (ends) running.back().score += kNever;
      if (!ends || i >= num_beams || full) continue;
      finished.push_back(ranked[i]);
      finished.back().score = penalised(ranked[i].score, length, options.length_penalty);
    }
    sort_by_score(running);
    running.resize(std::min(num_beams, running.size()));
    sort_by_score(finished);
    search.smallest_gap = std::min(search.smallest_gap, smallest_gap(finished, num_beams));
    finished.resize(num_beams);
    const bool to_the_end =
        options.early_stopping == EarlyStopping::never && options.length_penalty > 0.0;
    const double best =
        penalised(running[0].score, to_the_end ? max_length : length, options.length_penalty);
    const bool complete = std::ranges::all_of(finished, &Hypothesis::valid);
    improvable = best > (complete ? finished.back().score : kNever);
    if (complete && options.early_stopping == EarlyStopping::when_found) break;
  }
  return search;
}

void expect_same(const std::vector<Generated>& actual, const std::vector<Hypothesis>& expected,
                 std::size_t count, const std::string& what) {
  ASSERT_EQ(actual.size(), count) << what;
  for (std::size_t i = 0; i < count; ++i) {
    EXPECT_EQ(actual[i].tokens, expected[i].tokens) << what << ", sequence " << i;
    EXPECT_NEAR(actual[i].score, expected[i].score, 1e-4) << what << ", sequence " << i;
  }
}

ModelConfig small_vocabulary(std::int64_t vocab_size) {
  ModelConfig config = tiny_config();
  config.vocab_size = vocab_size;
  return config;
}

void every_sequence(Oracle& oracle, const GenerationOptions& options, const Hypothesis& start,
                    std::vector<Hypothesis>& all) {
  const std::vector<double>& scores = oracle.next(start.tokens);
  for (std::size_t token = 0; token < scores.size(); ++token) {
    Hypothesis next{start.tokens, start.score + scores[token]};
    next.tokens.push_back(static_cast<std::int64_t>(token));
    if (contains(options.stop_token_ids, next.tokens.back()) ||
        std::ssize(next.tokens) == options.max_new_tokens) {
      next.score = penalised(next.score, next.tokens.size(), options.length_penalty);
      all.push_back(next);
    } else {
      every_sequence(oracle, options, next, all);
    }
  }
}

// With more beams than there are sequences nothing is ever dropped.
TEST(BeamSearch, with_enough_beams_is_exhaustive) {
  CausalLM model(small_vocabulary(5));
  model.init_weights(test_seed());
  const std::vector<Tokens> prompts = {{1, 4, 2}};
  for (const double length_penalty : {1.0, 0.0, 2.0, -1.0}) {
    const GenerationOptions options{.max_new_tokens = 3,
                                    .stop_token_ids = {0},
                                    .num_return_sequences = 20,
                                    .num_beams = 90,
                                    .length_penalty = length_penalty};
    Oracle oracle(model, prompts[0], 1.0);
    std::vector<Hypothesis> all;
    every_sequence(oracle, options, {}, all);
    ASSERT_EQ(all.size(), 1u + 4u + 16u * 5u);
    sort_by_score(all);
    if (smallest_gap(all, 20) < kNoise) continue;
    expect_same(generate(model, prompts, options), all, 20,
                "length penalty " + std::to_string(length_penalty));
  }
}

TEST(BeamSearch, is_its_definition) {
  CausalLM model(small_vocabulary(14));
  const Tokens prompt = {5, 3, 13, 7};
  int num_early = 0, num_close = 0;
  for (std::uint64_t round = 0; round < 6; ++round) {
    model.init_weights(test_seed() + round);
    for (const double length_penalty : {1.0, 0.0, 1.7, -0.5}) {
      for (const EarlyStopping early :
           {EarlyStopping::heuristic, EarlyStopping::when_found, EarlyStopping::never}) {
        for (const Tokens& stops : {Tokens{}, Tokens{2}, Tokens{2, 9, 11}}) {
          GenerationOptions options{.max_new_tokens = 7, .stop_token_ids = stops};
          options.num_beams = 2 + static_cast<std::int64_t>(round) % 3;
          options.num_return_sequences = options.num_beams;
          options.length_penalty = length_penalty;
          options.early_stopping = early;
          options.sampling.repetition_penalty = round % 2 == 0 ? 1.0 : 1.4;
          Oracle oracle(model, prompt, options.sampling.repetition_penalty);
          const Search expected = defined_search(oracle, options);
          if (expected.smallest_gap < kNoise) {
            ++num_close;
            continue;
          }
          num_early += expected.finished[0].tokens.size() < 7;
          expect_same(generate(model, std::span(&prompt, 1), options), expected.finished,
                      static_cast<std::size_t>(options.num_beams),
                      "round " + std::to_string(round) + ", length penalty " +
                          std::to_string(length_penalty) + ", " + std::to_string(stops.size()) +
                          " stops, early stopping " + std::to_string(static_cast<int>(early)));
        }
      }
    }
  }
  EXPECT_LT(num_close, 6 * 36 / 2);
  EXPECT_GT(num_early, 10) << "too few searches end before their length: the rules are not tested";
}

TEST(BeamSearch, more_beams_than_the_vocabulary_has_tokens) {
  CausalLM model(small_vocabulary(3));
  model.init_weights(test_seed());
  const Tokens prompt = {1};
  const GenerationOptions options{.max_new_tokens = 4, .num_return_sequences = 8, .num_beams = 8};
  Oracle oracle(model, prompt, 1.0);
  const Search expected = defined_search(oracle, options);
  if (expected.smallest_gap >= kNoise) {
    expect_same(generate(model, std::span(&prompt, 1), options), expected.finished, 8, "wide");
  }
  // There are only three sequences of one token.
  EXPECT_EQ(generate(model, std::span(&prompt, 1),
                     {.max_new_tokens = 1, .num_return_sequences = 8, .num_beams = 8})
                .size(),
            3u);
}

}  // namespace
}  // namespace flashmha
