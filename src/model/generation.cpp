// Greedy and sampled generation, and what all kinds of generation check.
#include "flashmha/generation.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "core/check.h"
#include "core/format.h"
#include "core/located.h"
#include "model/draw.h"
#include "model/generation_batch.h"

namespace flashmha::model {
namespace {

constexpr std::int64_t kPageSize = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check_tokens(std::span<const Tokens> prompts, const GenerationOptions& options,
                  std::int64_t vocab_size) {
  for (const std::int64_t token : options.stop_token_ids) {
    check(token >= 0 && token < vocab_size, "[generate] stop_token_ids must be in [0, {}); got {}",
          vocab_size, token);
  }
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    check(!prompts[i].empty(), "[generate] prompt {} must have at least one token", i);
    for (const std::int64_t token : prompts[i]) {
      check(token >= 0 && token < vocab_size,
            "[generate] tokens of prompt {} must be in [0, {}); got {}", i, vocab_size, token);
    }
  }
}

[[noreturn]] void refuse_logits(std::int64_t row, float value, std::int64_t token) {
  fail(ErrorCode::invalid_argument,
       "[generate] logits must be finite or -inf, and not all -inf; row {} has {} at token {}", row,
       value, token);
}

// The most likely tokens of scores [rows, vocab_size]. argmax takes a NaN for the largest, so that
// a look at the chosen ones finds it.
Tokens most_likely_tokens(const TensorView& scores) {
  const std::int64_t num_rows = scores.size(0);
  const Tensor found = Tensor::empty({2, num_rows}, DType::int32, scores.device);  // read together
  TensorView values = found.view().select(0, 1);
  values.dtype = DType::float32;
  ops::argmax(scores, found.view().select(0, 0), values);
  const Located host(found);
  const auto* tokens = host.as<std::int32_t>();
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const auto value = std::bit_cast<float>(tokens[num_rows + row]);
    if (!std::isfinite(value)) refuse_logits(row, value, tokens[row]);
  }
  return {tokens, tokens + num_rows};
}

// What every row has seen, each token once: int32 [rows, most], filled up with -1.
Tensor seen_tokens(std::vector<Tokens> rows, Device device) {
  std::size_t most = 0;
  for (Tokens& row : rows) {
    std::ranges::sort(row);
    row.erase(std::unique(row.begin(), row.end()), row.end());
    most = std::max(most, row.size());
  }
  std::vector<std::int32_t> padded(rows.size() * most, -1);
  for (std::size_t row = 0; row < rows.size(); ++row)
    std::ranges::transform(rows[row], padded.begin() + static_cast<std::ptrdiff_t>(row * most),
                           [](std::int64_t token) { return static_cast<std::int32_t>(token); });
  return to_device(view_of(padded.data(), {std::ssize(rows), static_cast<std::int64_t>(most)}),
                   device);
}

[[noreturn]] void refuse_row(const TensorView& scores, std::int64_t row) {
  const Located host(scores);
  const std::span line(host.as<float>(), static_cast<std::size_t>(scores.numel()));
  const auto bad = std::ranges::find_if(line, [](float score) { return !(score < kInfinity); });
  const auto found = bad == line.end() ? line.begin() : bad;  // all -inf
  refuse_logits(row, *found, found - line.begin());
}

// A token for each row of scores float32 [rows, vocab_size]; draws in [0, 1).
Tokens drawn_tokens(const TensorView& scores, const SamplingOptions& options,
                    std::span<const double> draws) {
  const std::int64_t num_rows = scores.size(0);
  const Tensor chosen = Tensor::empty({num_rows}, DType::int32, scores.device);
  ops::sample(scores, filters_of(options),
              Located(view_of(draws.data(), {num_rows}), scores.device), chosen);
  const Located host(chosen);
  const auto* tokens = host.as<std::int32_t>();
  for (std::int64_t row = 0; row < num_rows; ++row) {
    if (tokens[row] < 0) refuse_row(scores.select(0, row), row);
  }
  return {tokens, tokens + num_rows};
}

// Rows of the batch that are being sampled, and the result that each belongs to.
class SamplingLoop {
 public:
  SamplingLoop(GenerationBatch& batch, const GenerationOptions& options)
      : batch_(batch), options_(options) {
    std::vector<std::int64_t> rows;
    for (std::int64_t prompt = 0; prompt < batch.num_rows(); ++prompt) {
      for (std::int64_t i = 0; i < options.num_return_sequences; ++i) {
        rows.push_back(prompt);
        results_.push_back({.prompt = prompt});
      }
    }
    first_selection_ = std::move(rows);
    row_results_.resize(results_.size());
    std::iota(row_results_.begin(), row_results_.end(), std::size_t{0});
  }

  std::vector<Generated> run() {
    for (std::int64_t step = 0; step < options_.max_new_tokens && !row_results_.empty(); ++step) {
      const Tokens tokens = choose(batch_.next_logits(), step);
      advance(tokens, step);
      if (options_.on_step) options_.on_step(step);
    }
    return std::move(results_);
  }

 private:
  // One token for each row. In the first step a prompt's sequences share its logits.
  Tokens choose(const Tensor& logits, std::int64_t step) const {
    const SamplingOptions& sampling = options_.sampling;
    const bool penalises = sampling.repetition_penalty != 1.0;
    const TensorView rows = logits.view().reshape({logits.size(0), logits.size(2)});
    if (sampling.temperature == 0.0 && !penalises) return most_likely_tokens(rows);
    const Tensor scores = scores_of_results(rows, step);
    if (penalises) {
      std::vector<Tokens> seen;
      for (std::size_t row = 0; row < row_results_.size(); ++row) {
        const auto tokens = batch_.tokens(source_of(row, step));
        seen.emplace_back(tokens.begin(), tokens.end());
      }
      ops::penalise(scores, seen_tokens(std::move(seen), scores.device()),
                    static_cast<float>(sampling.repetition_penalty));
    }
    if (sampling.temperature == 0.0) return most_likely_tokens(scores);
    std::vector<double> draws;
    for (const std::size_t result : row_results_) {
      draws.push_back(uniform_draw(sampling.seed, {.row = options_.first_row + result,
                                                   .step = static_cast<std::uint64_t>(step)}));
    }
    return drawn_tokens(scores, sampling, draws);
  }

  // The row of the batch that a result's next token comes from.
  std::int64_t source_of(std::size_t row, std::int64_t step) const {
    return step == 0 ? first_selection_[row] : static_cast<std::int64_t>(row);
  }

  // float32 [results, vocab_size], to be changed.
  Tensor scores_of_results(const TensorView& logits, std::int64_t step) const {
    const auto count = std::ssize(row_results_);
    if (step > 0 || count == logits.size(0)) return cast(logits, DType::float32);
    const Tensor rows = Tensor::empty({count, logits.size(1)}, logits.dtype, logits.device);
    ops::gather_rows(logits, Located(view_of(first_selection_.data(), {count}), logits.device),
                     rows);
    return cast(rows, DType::float32);
  }

  // Appends the tokens; finished rows leave the batch.
  void advance(const Tokens& tokens, std::int64_t step) {
    std::vector<std::int64_t> kept;
    std::vector<std::size_t> kept_results;
    Tokens kept_tokens;
    for (std::size_t row = 0; row < tokens.size(); ++row) {
      if (finishes(row_results_[row], tokens[row])) continue;
      kept.push_back(source_of(row, step));
      kept_results.push_back(row_results_[row]);
      kept_tokens.push_back(tokens[row]);
    }
    row_results_ = std::move(kept_results);
    if (row_results_.empty()) return;
    if (step == 0 || kept.size() < tokens.size()) batch_.select(kept);
    batch_.append(kept_tokens);
  }

  bool finishes(std::size_t index, std::int64_t token) {
    Generated& result = results_[index];
    result.tokens.push_back(token);
    const bool goes_on =
        !options_.on_token || options_.on_token(static_cast<std::int64_t>(index), token);
    if (std::ranges::find(options_.stop_token_ids, token) != options_.stop_token_ids.end()) {
      result.finish_reason = FinishReason::stop_token;
    } else if (!goes_on) {
      result.finish_reason = FinishReason::callback;
    } else {
      return false;
    }
    return true;
  }

  GenerationBatch& batch_;
  const GenerationOptions& options_;
  std::vector<std::int64_t> first_selection_;  // the prompt of every result
  std::vector<Generated> results_;
  std::vector<std::size_t> row_results_;  // of every row of the batch
};

std::vector<Generated> generate_rows(const CausalLM& model, std::span<const Tokens> prompts,
                                     nn::KVCaches* caches, const GenerationOptions& options) {
  check_generation(options);
  check_tokens(prompts, options, model.config().vocab_size);
  if (prompts.empty()) return {};
  GenerationBatch batch(model, prompts, caches);
  if (options.num_beams > 1 && options.max_new_tokens > 0) return beam_search(batch, options);
  return SamplingLoop(batch, options).run();
}

// The real tokens of every row.
std::vector<Tokens> rows_of(const TensorView& prompts, const TensorView& attention_mask) {
  const Tensor ids = cast(Located(prompts), DType::int64);
  Tensor mask;
  if (attention_mask.defined()) {
    mask = Tensor::empty(prompts.shape, DType::int64);
    copy(attention_mask, mask);
  }
  const std::int64_t seqlen = prompts.size(1);
  std::vector<Tokens> rows(static_cast<std::size_t>(prompts.size(0)));
  for (std::int64_t i = 0; i < ids.numel(); ++i) {
    const bool real = !mask.defined() || mask.as<std::int64_t>()[i] != 0;
    if (real) rows[static_cast<std::size_t>(i / seqlen)].push_back(ids.as<std::int64_t>()[i]);
    check(real || (i + 1) % seqlen != 0,
          "[generate] prompts must be padded on the left; the last token of row {} is padding",
          i / seqlen);
  }
  return rows;
}

}  // namespace

std::string_view cache_kind_name(CacheKind kind) {
  switch (kind) {
    case CacheKind::dynamic_cache: return "dynamic";
    case CacheKind::static_cache: return "static";
    case CacheKind::sliding_cache: return "sliding";
    case CacheKind::paged_cache: return "paged";
  }
  return "unknown";
}

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::length: return "length";
    case FinishReason::stop_token: return "stop_token";
    case FinishReason::stop_string: return "stop_string";
    case FinishReason::callback: return "callback";
  }
  return "unknown";
}

nn::KVCaches make_caches(const ModelConfig& config, CacheKind kind, std::int64_t capacity) {
  check(kind != CacheKind::sliding_cache || config.has_sliding_window(),
        "[make_caches] a sliding cache needs a model with a sliding_window; no layer has one");
  const auto make = [&](std::int64_t layer) -> std::unique_ptr<nn::KVCache> {
    const std::int64_t window = config.attention_config(layer).sliding_window;
    switch (kind) {
      case CacheKind::dynamic_cache: return std::make_unique<nn::DynamicKVCache>();
      case CacheKind::static_cache: return std::make_unique<nn::StaticKVCache>(capacity);
      case CacheKind::sliding_cache:
        if (window == 0) return std::make_unique<nn::DynamicKVCache>();
        return std::make_unique<nn::SlidingKVCache>(window);
      case CacheKind::paged_cache: return std::make_unique<nn::PagedKVCache>(kPageSize);
    }
    return nullptr;
  };
  return nn::KVCaches::create(config.num_layers, make);
}

void check_generation(const GenerationOptions& options) {
  check(options.max_new_tokens >= 0, "[generate] max_new_tokens must not be negative; got {}",
        options.max_new_tokens);
  check_sampling(options.sampling);
  check(options.num_beams >= 1 && options.num_return_sequences >= 1,
        "[generate] num_beams ({}) and num_return_sequences ({}) must be positive",
        options.num_beams, options.num_return_sequences);
  const bool sampled = options.sampling.temperature > 0.0;
  if (options.num_beams == 1) {
    check(sampled || options.num_return_sequences == 1,
          "[generate] num_return_sequences ({}) needs num_beams or a temperature above 0: greedy "
          "generation gives one sequence",
          options.num_return_sequences);
    return;
  }
  check(options.num_return_sequences <= options.num_beams,
        "[generate] num_return_sequences ({}) must be at most num_beams ({})",
        options.num_return_sequences, options.num_beams);
  check(!sampled, "[generate] num_beams ({}) excludes a temperature above 0; got {}",
        options.num_beams, options.sampling.temperature);
  check(!options.on_token,
        "[generate] num_beams ({}) excludes on_token: which tokens stay is known at the end only",
        options.num_beams);
  check(std::isfinite(options.length_penalty), "[generate] length_penalty must be finite; got {}",
        options.length_penalty);
}

std::vector<Generated> generate(const CausalLM& model,
                                std::span<const std::vector<std::int64_t>> prompts,
                                const GenerationOptions& options) {
  check_generation(options);
  if (!options.cache) return generate_rows(model, prompts, nullptr, options);
  std::int64_t longest = 1;
  for (const Tokens& prompt : prompts)
    longest = std::max<std::int64_t>(longest, std::ssize(prompt));
  nn::KVCaches caches =
      make_caches(model.config(), *options.cache, longest + options.max_new_tokens);
  return generate_rows(model, prompts, &caches, options);
}

Tensor generate(const CausalLM& model, const TensorView& prompts, const TensorView& attention_mask,
                nn::KVCaches* caches, const GenerationOptions& options) {
  check(prompts.rank() == 2 && prompts.numel() > 0,
        "[generate] prompts must be [batch, seqlen], not empty; got {}", prompts);
  check(!attention_mask.defined() || attention_mask.shape == prompts.shape,
        "[generate] attention_mask must have the shape of prompts; got {} and {}", attention_mask,
        prompts);
  check(!caches || caches->seqlen() == 0, "[generate] caches must be empty; they hold {} tokens",
        caches ? caches->seqlen() : 0);
  const std::vector<Tokens> rows = rows_of(prompts, attention_mask);
  const std::vector<Generated> results = generate_rows(model, rows, caches, options);

  const std::int64_t prompt_seqlen = prompts.size(1);
  std::int64_t most = 0;
  for (const Generated& result : results)
    most = std::max<std::int64_t>(most, std::ssize(result.tokens));
  Tensor tokens = Tensor::empty({std::ssize(results), prompt_seqlen + most}, DType::int64);
  fill(tokens, static_cast<double>(options.pad_token_id));
  for (std::int64_t row = 0; row < tokens.size(0); ++row) {
    const Generated& result = results[static_cast<std::size_t>(row)];
    const TensorView line = tokens.view().select(0, row);
    copy(prompts.select(0, result.prompt), line.slice(0, 0, prompt_seqlen));
    std::ranges::copy(result.tokens, line.as<std::int64_t>() + prompt_seqlen);
  }
  return tokens;
}

}  // namespace flashmha::model
