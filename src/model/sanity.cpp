// Plain against flash attention on a whole model.
#include "flashmha/sanity.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "core/check.h"
#include "flashmha/generation.h"
#include "flashmha/random.h"
#include "flashmha/training.h"

namespace flashmha::model {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Error that two correct ways of computing may differ by: a few hundred roundings of float32 add up
// over the layers; in 16 bits the baseline's own error says how many, and half an ulp is granted.
double rounding_floor(DType dtype) {
  switch (dtype) {
    case DType::bfloat16: return 0x1p-9;
    case DType::float16: return 0x1p-12;
    default: return 2e-5;
  }
}

// The same quantity from the three models.
struct Outcome {
  TensorView flash;
  TensorView plain;
  TensorView reference;
};

Check judge(std::string name, const Outcome& outcome, DType dtype) {
  return {
      .name = std::move(name),
      .detail = {},
      .error = relative_error(outcome.flash, outcome.reference),
      .tolerance = 2.0 * relative_error(outcome.plain, outcome.reference) + rounding_floor(dtype)};
}

using Gradients = std::map<std::string, TensorView>;

Gradients gradients_of(CausalLM& model) {
  Gradients gradients;
  model.visit([&](const std::string& name, nn::Parameter& parameter) {
    gradients[name] = parameter.gradient_sum();
  });
  return gradients;
}

// All gradients in one line: the tensor that comes closest to (or is farthest above) its tolerance.
Check judge_gradients(std::string name, ModelTrio& models) {
  const Gradients flash = gradients_of(models.flash);
  const Gradients plain = gradients_of(models.plain);
  Check worst;
  double worst_ratio = -1.0;
  for (const auto& [tensor, reference] : gradients_of(models.reference)) {
    Check check =
        judge(tensor, {flash.at(tensor), plain.at(tensor), reference}, models.flash.config().dtype);
    const double ratio = std::isnan(check.error) ? kInfinity : check.error / check.tolerance;
    if (ratio > worst_ratio) {
      worst_ratio = ratio;
      worst = std::move(check);
    }
  }
  worst.detail = fmt::format("{} tensors, closest to its tolerance: {}", flash.size(), worst.name);
  worst.name = std::move(name);
  return worst;
}

Tensor random_ids(const ModelTrio& models, std::int64_t batch, std::int64_t seqlen,
                  std::uint64_t seed) {
  Tensor ids = Tensor::empty({batch, seqlen}, DType::int64);
  fill_integers(ids, seed, models.flash.config().vocab_size);
  return ids;
}

// Loss and every gradient.
void check_training(const std::string& suffix, ModelTrio& models, const ModelInputs& inputs,
                    const TensorView& labels, const CheckReport& report) {
  std::array<float, 3> losses{};
  std::size_t index = 0;
  for (CausalLM* model : {&models.flash, &models.plain, &models.reference}) {
    model->zero_gradients();
    losses[index++] = static_cast<float>(accumulate_gradients(*model, inputs, labels).mean);
  }
  report(judge("loss" + suffix,
               {view_of(&losses[0], {1}), view_of(&losses[1], {1}), view_of(&losses[2], {1})},
               models.flash.config().dtype));
  report(judge_gradients("gradients" + suffix, models));
}

// ---- padding -----------------------------------------------------------------------------------

// Row b holds seqlen - b * seqlen / (batch + 1) real tokens at columns [begin, end).
struct PaddedRow {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

std::vector<PaddedRow> padded_rows(const SanityOptions& options, std::int64_t seqlen, bool left) {
  std::vector<PaddedRow> rows;
  for (std::int64_t row = 0; row < options.batch; ++row) {
    const std::int64_t length = seqlen - row * seqlen / (options.batch + 1);
    rows.push_back(left ? PaddedRow{seqlen - length, seqlen} : PaddedRow{0, length});
  }
  return rows;
}

// int64 [batch, seqlen]: inside at real tokens, kept or -100 elsewhere.
Tensor mask_of(const std::vector<PaddedRow>& rows, std::int64_t seqlen) {
  Tensor mask = Tensor::zeros({static_cast<std::int64_t>(rows.size()), seqlen}, DType::int64);
  for (std::size_t row = 0; row < rows.size(); ++row) {
    fill(mask.view()
             .select(0, static_cast<std::int64_t>(row))
             .slice(0, rows[row].begin, rows[row].end),
         1.0);
  }
  return mask;
}

Tensor labels_of(const TensorView& ids, const std::vector<PaddedRow>& rows) {
  Tensor labels = clone(ids);
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const TensorView line = labels.view().select(0, static_cast<std::int64_t>(row));
    fill(line.slice(0, 0, rows[row].begin), static_cast<double>(kIgnoreIndex));
    fill(line.slice(0, rows[row].end, ids.size(1)), static_cast<double>(kIgnoreIndex));
  }
  return labels;
}

// The real tokens' rows of logits [batch, seqlen, vocab_size], one sequence after the other.
Tensor real_rows(const TensorView& logits, const std::vector<PaddedRow>& rows) {
  std::int64_t total = 0;
  for (const PaddedRow& row : rows)
    total += row.end - row.begin;
  Tensor real = Tensor::empty({total, logits.size(2)}, logits.dtype);
  std::int64_t first = 0;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const std::int64_t length = rows[row].end - rows[row].begin;
    copy(logits.select(0, static_cast<std::int64_t>(row)).slice(0, rows[row].begin, rows[row].end),
         real.view().slice(0, first, first + length));
    first += length;
  }
  return real;
}

// The same rows from each sequence alone, without padding.
Tensor alone_rows(const CausalLM& model, const TensorView& ids,
                  const std::vector<PaddedRow>& rows) {
  Tensor padded =
      Tensor::zeros({ids.size(0), ids.size(1), model.config().vocab_size}, model.config().dtype);
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const auto index = static_cast<std::int64_t>(row);
    const auto [begin, end] = rows[row];
    const Tensor alone =
        model.forward({.input_ids = ids.slice(0, index, index + 1).slice(1, begin, end)});
    copy(alone, padded.view().slice(0, index, index + 1).slice(1, begin, end));
  }
  return real_rows(padded, rows);
}

// ---- caches ------------------------------------------------------------------------------------

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
  const Tensor mask = mask_of(padded_rows(options, prompt_seqlen, /*left=*/true), prompt_seqlen);
  const GenerationOptions generation{.max_new_tokens = options.new_tokens};
  const Tensor expected = generate(models.plain, prompts, mask, nullptr, generation);
  const Tensor tokens = generate(models.flash, prompts, mask, caches, generation);
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

double relative_error(const TensorView& actual, const TensorView& expected) {
  check(actual.shape == expected.shape, "[relative_error] shapes must be equal; got {} and {}",
        to_string(actual), to_string(expected));
  const Tensor got = cast(actual, DType::float32);
  const Tensor want = cast(expected, DType::float32);
  double largest = 0.0;
  double difference = 0.0;
  for (std::int64_t i = 0; i < want.numel(); ++i) {
    const double a = got.as<float>()[i];
    const double b = want.as<float>()[i];
    if (!std::isfinite(a) || !std::isfinite(b)) {
      const bool same = a == b || (std::isnan(a) && std::isnan(b));
      if (!same) return kInfinity;
      continue;
    }
    largest = std::max(largest, std::abs(b));
    difference = std::max(difference, std::abs(a - b));
  }
  return largest > 0.0 ? difference / largest : difference;
}

namespace {

ModelConfig with_kind(ModelConfig config, AttentionKind kind) {
  config.attention_kind = kind;
  return config;
}

ModelConfig reference_config(ModelConfig config) {
  config.dtype = DType::float32;
  return with_kind(config, AttentionKind::plain);
}

}  // namespace

ModelTrio::ModelTrio(const ModelConfig& config, std::uint64_t seed)
    : flash(with_kind(config, AttentionKind::flash)),
      plain(with_kind(config, AttentionKind::plain)),
      reference(reference_config(config)) {
  flash.init_weights(seed);
  copy_weights(flash, plain);
  copy_weights(flash, reference);
}

void check_dense(ModelTrio& models, const SanityOptions& options, const CheckReport& report) {
  const Tensor ids = random_ids(models, options.batch, options.seqlen, options.seed);
  const ModelInputs inputs{.input_ids = ids};
  const Tensor flash = models.flash.forward(inputs);
  const Tensor plain = models.plain.forward(inputs);
  const Tensor reference = models.reference.forward(inputs);
  report(judge("logits", {flash, plain, reference}, models.flash.config().dtype));
  check_training("", models, inputs, ids, report);
}

void check_padding(ModelTrio& models, const SanityOptions& options, const CheckReport& report) {
  const Tensor ids = random_ids(models, options.batch, options.seqlen, options.seed + 1);
  for (const bool left : {true, false}) {
    const std::string suffix = left ? ", left padding" : ", right padding";
    const std::vector<PaddedRow> rows = padded_rows(options, options.seqlen, left);
    const Tensor mask = mask_of(rows, options.seqlen);
    const ModelInputs inputs{.input_ids = ids, .attention_mask = mask};
    const Tensor flash = real_rows(models.flash.forward(inputs), rows);
    const Tensor plain = real_rows(models.plain.forward(inputs), rows);
    const Tensor alone = alone_rows(models.reference, ids, rows);
    report(judge("logits" + suffix, {flash, plain, alone}, models.flash.config().dtype));
    check_training(suffix, models, inputs, labels_of(ids, rows), report);
  }
}

void check_caches(ModelTrio& models, const SanityOptions& options, const CheckReport& report) {
  const ModelConfig& config = models.flash.config();
  const Tensor ids = random_ids(models, options.batch, options.seqlen, options.seed + 2);
  const Tensor plain = models.plain.forward({.input_ids = ids});
  const Tensor reference = models.reference.forward({.input_ids = ids});
  const double tolerance = 2.0 * relative_error(plain, reference) + rounding_floor(config.dtype);
  report(check_tokens("greedy tokens, no cache", models, options, nullptr, tolerance));

  std::vector<CacheKind> kinds = {CacheKind::dynamic_cache, CacheKind::static_cache,
                                  CacheKind::paged_cache};
  if (config.attention.sliding_window > 0) kinds = {CacheKind::sliding_cache};
  for (const CacheKind kind : kinds) {
    const std::string suffix = fmt::format(", {} cache", cache_kind_name(kind));
    const Tensor flash = logits_through_cache(models.flash, ids, kind);
    report(judge("logits" + suffix, {flash, plain, reference}, config.dtype));
    nn::KVCaches caches = make_caches(config, kind, options.seqlen + options.new_tokens);
    report(check_tokens("greedy tokens" + suffix, models, options, &caches, tolerance));
  }
}

void check_model(ModelTrio& models, const SanityOptions& options, const CheckReport& report) {
  check_dense(models, options, report);
  check_padding(models, options, report);
  check_caches(models, options, report);
}

}  // namespace flashmha::model
