// Beam search as Transformers defines it: in each step the best continuations of a prompt's running
// beams are ranked; those that end enter the list of finished sequences if they are among the first
// num_beams, the others go on. (Candidates are enough that num_beams can go on even if every beam's
// best tokens all end it.)
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/check.h"
#include "core/located.h"
#include "model/generation_batch.h"

namespace flashmha::model {
namespace {

struct Candidate {
  double score = 0.0;  // sum of log probabilities
  std::int64_t row = 0;
  std::int64_t token = 0;
};

bool better(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  return std::pair(a.row, a.token) < std::pair(b.row, b.token);
}

// The best `count` candidates that were added.
class Ranking {
 public:
  explicit Ranking(std::size_t count) : count_(count) {}

  void add(const Candidate& candidate) {
    if (heap_.size() == count_) {
      if (!better(candidate, heap_.front())) return;
      std::ranges::pop_heap(heap_, better);
      heap_.pop_back();
    }
    heap_.push_back(candidate);
    std::ranges::push_heap(heap_, better);
  }

  std::vector<Candidate> sorted() && {
    std::ranges::sort(heap_, better);
    return std::move(heap_);
  }

 private:
  std::size_t count_;
  std::vector<Candidate> heap_;  // the worst first
};

// log softmax of logits, in place, as float: what the scores of Transformers are.
void to_log_probabilities(std::span<float> logits) {
  double highest = -std::numeric_limits<double>::infinity();
  for (const float logit : logits) {
    check(logit < std::numeric_limits<float>::infinity(),
          "[generate] logits must be finite or -inf; got {}", logit);
    highest = std::max(highest, static_cast<double>(logit));
  }
  check(std::isfinite(highest), "[generate] one of the {} logits must be above -inf",
        logits.size());
  double sum = 0.0;
  for (const float logit : logits)
    sum += std::exp(static_cast<double>(logit) - highest);
  const double lse = highest + std::log(sum);
  for (float& logit : logits)
    logit = static_cast<float>(static_cast<double>(logit) - lse);
}

// The search of one prompt.
class PromptSearch {
 public:
  PromptSearch(std::int64_t prompt, const GenerationOptions& options)
      : prompt_(prompt),
        options_(options),
        num_beams_(static_cast<std::size_t>(options.num_beams)) {}

  // Rows of the batch that are this prompt's, in this order.
  std::span<const Candidate> running() const { return running_; }

  // ranked: the best candidates of this step, which is the length-th new token.
  void advance(std::span<const Candidate> ranked, const GenerationBatch& batch,
               std::int64_t prompt_seqlen, std::int64_t length) {
    running_.clear();
    const bool last = length == options_.max_new_tokens;
    for (std::size_t i = 0; i < ranked.size(); ++i) {
      const auto& stops = options_.stop_token_ids;
      const bool ends = std::ranges::find(stops, ranked[i].token) != stops.end();
      if (!ends && !last) {
        if (running_.size() < num_beams_) running_.push_back(ranked[i]);
      } else if (i < num_beams_) {
        const auto tokens =
            batch.tokens(ranked[i].row).subspan(static_cast<std::size_t>(prompt_seqlen));
        finish(ranked[i], tokens, ends ? FinishReason::stop_token : FinishReason::length, length);
      }
    }
    if (!can_improve(length)) running_.clear();
  }

  std::vector<Generated> results() && {
    const auto count = static_cast<std::size_t>(options_.num_return_sequences);
    if (finished_.size() > count) finished_.resize(count);
    return std::move(finished_);
  }

 private:
  double penalised(double score, std::int64_t length) const {
    return score / std::pow(static_cast<double>(length), options_.length_penalty);
  }

  void finish(const Candidate& candidate, std::span<const std::int64_t> before, FinishReason reason,
              std::int64_t length) {
    Generated sequence{.prompt = prompt_,
                       .tokens = {before.begin(), before.end()},
                       .finish_reason = reason,
                       .score = penalised(candidate.score, length)};
    sequence.tokens.push_back(candidate.token);
    const auto place = std::ranges::find_if(
        finished_, [&](const Generated& other) { return other.score < sequence.score; });
    finished_.insert(place, std::move(sequence));
    if (finished_.size() > num_beams_) finished_.pop_back();
  }

  bool can_improve(std::int64_t length) const {
    if (running_.empty() || finished_.size() < num_beams_) return !running_.empty();
    if (options_.early_stopping == EarlyStopping::when_found) return false;
    const bool longest =
        options_.early_stopping == EarlyStopping::never && options_.length_penalty > 0.0;
    const std::int64_t best_length = longest ? options_.max_new_tokens : length;
    return penalised(running_.front().score, best_length) > finished_.back().score;
  }

  std::int64_t prompt_;
  const GenerationOptions& options_;
  std::size_t num_beams_;
  std::vector<Candidate> running_;   // by falling score
  std::vector<Generated> finished_;  // by falling score, at most num_beams
};

// The best candidates that continue `rows`, whose scores so far are given.
std::vector<Candidate> rank(const GenerationBatch& batch, const TensorView& scores,
                            std::span<const Candidate> rows, const GenerationOptions& options) {
  const std::size_t endings = std::max<std::size_t>(1, options.stop_token_ids.size());
  Ranking ranking((1 + endings) * static_cast<std::size_t>(options.num_beams));
  const auto vocab_size = static_cast<std::size_t>(scores.size(2));
  for (const Candidate& row : rows) {
    const std::span<float> line{scores.as<float>() + row.row * scores.size(2), vocab_size};
    to_log_probabilities(line);
    penalise_repetition(line, batch.tokens(row.row), options.sampling.repetition_penalty);
    for (std::size_t token = 0; token < vocab_size; ++token) {
      if (!std::isfinite(line[token])) continue;
      ranking.add({row.score + static_cast<double>(line[token]), row.row,
                   static_cast<std::int64_t>(token)});
    }
  }
  return std::move(ranking).sorted();
}

}  // namespace

std::vector<Generated> beam_search(GenerationBatch& batch, const GenerationOptions& options) {
  const std::int64_t num_prompts = batch.num_rows();
  std::vector<PromptSearch> searches;
  std::vector<std::vector<Candidate>> rows;  // of every prompt: score so far, row of the batch
  std::vector<std::int64_t> prompt_seqlens;
  for (std::int64_t prompt = 0; prompt < num_prompts; ++prompt) {
    searches.emplace_back(prompt, options);
    rows.push_back({{.row = prompt}});
    prompt_seqlens.push_back(std::ssize(batch.tokens(prompt)));
  }
  for (std::int64_t length = 1; length <= options.max_new_tokens; ++length) {
    const Tensor logits = cast(batch.next_logits(), DType::float32);
    const Located scores(logits);
    std::vector<std::int64_t> selected;
    Tokens tokens;
    for (std::size_t i = 0; i < searches.size(); ++i) {
      if (rows[i].empty()) continue;
      searches[i].advance(rank(batch, scores, rows[i], options), batch, prompt_seqlens[i], length);
      rows[i].clear();
      for (const Candidate& beam : searches[i].running()) {
        rows[i].push_back({.score = beam.score, .row = std::ssize(selected)});
        selected.push_back(beam.row);
        tokens.push_back(beam.token);
      }
    }
    if (options.on_step) options.on_step(length - 1);
    if (selected.empty()) break;
    batch.select(selected);
    batch.append(tokens);
  }
  std::vector<Generated> results;
  for (PromptSearch& search : searches) {
    for (Generated& result : std::move(search).results())
      results.push_back(std::move(result));
  }
  return results;
}

}  // namespace flashmha::model
