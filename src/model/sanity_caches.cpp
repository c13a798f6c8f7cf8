// Caches against no cache: logits and greedy tokens.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "flashmha/error.h"
#include "flashmha/generation.h"
#include "model/sanity_rules.h"

namespace flashmha::model {
namespace {

// Logits of all tokens: half of them at once, three at once, the others one by one.
Tensor logits_through_cache(const CausalLM& model, const TensorView& ids, CacheKind kind) {
  const std::int64_t seqlen = ids.size(1);
  Tensor logits =
      Tensor::empty({ids.size(0), seqlen, model.config().vocab_size}, model.config().dtype);
  nn::KVCaches caches = make_caches(model.config(), kind, seqlen);
  const std::int64_t prefill = std::max<std::int64_t>(seqlen / 2, 1);
  for (std::int64_t seen = 0; seen < seqlen;) {
    const std::int64_t step = seen == 0 ? prefill : seen == prefill ? 3 : 1;
    const std::int64_t end = std::min(seqlen, seen + step);
    copy(model.forward({.input_ids = ids.slice(1, seen, end), .caches = &caches}),
         logits.view().slice(1, seen, end));
    seen = end;
  }
  return logits;
}

// Tokens [batch, length] that follow from greedy choices may differ from the expected ones only
// where the choice is open. Returns, over all rows, the largest margin by which the reference
// prefers the expected token at the first difference, as a share of its largest logit.
double token_margin(const ModelTrio& models, const TensorView& tokens, const TensorView& expected,
                    const TensorView& mask) {
  double margin = 0.0;
  const std::int64_t prompt_seqlen = mask.size(1);
  for (std::int64_t row = 0; row < tokens.size(0); ++row) {
    const TensorView got = tokens.select(0, row);
    const TensorView want = expected.select(0, row);
    const std::int64_t* first = got.as<std::int64_t>();
    const auto length = std::min(got.numel(), want.numel());
    const std::int64_t at =
        std::mismatch(first, first + length, want.as<std::int64_t>()).first - first;
    if (at == length) continue;
    std::int64_t begin = 0;  // of the real tokens
    while (begin < prompt_seqlen && mask.select(0, row).as<std::int64_t>()[begin] == 0)
      ++begin;
    const Tensor logits =
        models.reference.forward({.input_ids = expected.slice(0, row, row + 1).slice(1, begin, at),
                                  .last_logits_only = true});
    const float* values = logits.as<float>();
    const float largest =
        std::abs(*std::max_element(values, values + logits.numel(),
                                   [](float a, float b) { return std::abs(a) < std::abs(b); }));
    const float difference = values[want.as<std::int64_t>()[at]] - values[first[at]];
    margin = std::max(margin, static_cast<double>(difference / largest));
  }
  return margin;
}

std::int64_t count_equal(const TensorView& a, const TensorView& b) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    count += a.as<std::int64_t>()[i] == b.as<std::int64_t>()[i] ? 1 : 0;
  }
  return count;
}

// Greedy tokens of left-padded prompts: flash through a cache (or none) against plain without one.
Check check_tokens(const std::string& name, const ModelTrio& models, const SanityOptions& options,
                   nn::KVCaches* caches, double logits_tolerance) {
  const std::int64_t prompt_seqlen = std::max<std::int64_t>(options.seqlen / 2, 2);
  const Tensor prompts = random_ids(models, options.batch, prompt_seqlen, options.seed + 3);
  const Tensor mask =
      mask_of(padded_rows(options.batch, prompt_seqlen, /*left=*/true), prompt_seqlen);
  const GenerationOptions generation{.max_new_tokens = options.new_tokens};
  const Tensor expected = generate(models.plain, prompts, mask, nullptr, generation);
  Tensor tokens;
  try {
    tokens = generate(models.flash, prompts, mask, caches, generation);
  } catch (const Error& error) {  // logits that are no numbers have no most likely token
    return {.name = name,
            .detail = error.what(),
            .error = std::numeric_limits<double>::quiet_NaN(),
            .tolerance = 2.0 * logits_tolerance};
  }
  const auto new_tokens = [&](const Tensor& all) {
    return clone(all.view().slice(1, prompt_seqlen, all.size(1)));
  };
  return {.name = name,
          .detail = fmt::format("{} of {} tokens equal",
                                count_equal(new_tokens(tokens), new_tokens(expected)),
                                options.batch * options.new_tokens),
          .error = token_margin(models, tokens, expected, mask),
          .tolerance = 2.0 * logits_tolerance};
}

}  // namespace

void check_caches(ModelTrio& models, const SanityOptions& options, const CheckReport& report) {
  const ModelConfig& config = models.flash.config();
  const Tensor ids = random_ids(models, options.batch, options.seqlen, options.seed + 2);
  const Tensor plain = models.plain.forward({.input_ids = ids});
  const Tensor reference = models.reference.forward({.input_ids = ids});
  const double tolerance =
      options.slack * relative_error(plain, reference) + rounding_floor(config.dtype);
  report(check_tokens("greedy tokens, no cache", models, options, nullptr, tolerance));

  std::vector<CacheKind> kinds = {CacheKind::dynamic_cache, CacheKind::static_cache,
                                  CacheKind::paged_cache};
  if (config.has_sliding_window()) kinds = {CacheKind::sliding_cache};
  for (const CacheKind kind : kinds) {
    const std::string suffix = fmt::format(", {} cache", cache_kind_name(kind));
    const Tensor flash = logits_through_cache(models.flash, ids, kind);
    report(judge("logits" + suffix, {flash, plain, reference}, config.dtype, options.slack));
    nn::KVCaches caches = make_caches(config, kind, options.seqlen + options.new_tokens);
    report(check_tokens("greedy tokens" + suffix, models, options, &caches, tolerance));
  }
}

}  // namespace flashmha::model
