#include "model/generation_batch.h"

#include <algorithm>
#include <utility>

namespace flashmha::model {
namespace {

// int64 [rows, longest + max_new_tokens]; not defined if all prompts are equally long.
Tensor left_padding_mask(std::span<const Tokens> prompts, std::int64_t longest,
                         std::int64_t max_new_tokens) {
  const bool padded = std::ranges::any_of(
      prompts, [&](const Tokens& prompt) { return std::ssize(prompt) < longest; });
  if (!padded) return {};
  Tensor mask = Tensor::zeros({std::ssize(prompts), longest + max_new_tokens}, DType::int64);
  for (std::int64_t row = 0; row < std::ssize(prompts); ++row) {
    const auto real = std::ssize(prompts[static_cast<std::size_t>(row)]) + max_new_tokens;
    const TensorView line = mask.view().select(0, row);
    fill(line.slice(0, line.size(0) - real, line.size(0)), 1.0);
  }
  return mask;
}

}  // namespace

GenerationBatch::GenerationBatch(const CausalLM& model, std::span<const Tokens> prompts,
                                 std::int64_t max_new_tokens, nn::KVCaches* caches)
    : model_(&model), caches_(caches), rows_(prompts.begin(), prompts.end()), seqlen_(0) {
  for (const Tokens& row : rows_)
    seqlen_ = std::max<std::int64_t>(seqlen_, std::ssize(row));
  mask_ = left_padding_mask(prompts, seqlen_, max_new_tokens);
}

Tensor GenerationBatch::next_logits() const {
  const std::int64_t seen = caches_ ? caches_->seqlen() : 0;
  const std::int64_t count = seqlen_ - seen;
  const Tensor ids = Tensor::zeros({num_rows(), count}, DType::int64);  // padding: token 0
  for (std::int64_t row = 0; row < num_rows(); ++row) {
    const std::span<const std::int64_t> all = tokens(row);
    const std::int64_t real = std::min(count, std::ssize(all));
    std::ranges::copy(all.last(static_cast<std::size_t>(real)),
                      ids.as<std::int64_t>() + (row + 1) * count - real);
  }
  return model_->forward(
      {.input_ids = ids,
       .attention_mask = is_padded() ? mask_.view().slice(1, 0, seqlen_) : TensorView(),
       .caches = caches_,
       .last_logits_only = true});
}

void GenerationBatch::select(std::span<const std::int64_t> rows) {
  std::vector<Tokens> selected;
  selected.reserve(rows.size());
  for (const std::int64_t row : rows)
    selected.push_back(rows_[static_cast<std::size_t>(row)]);
  rows_ = std::move(selected);
  if (caches_) caches_->select(rows);
  if (!is_padded()) return;
  Tensor mask = Tensor::empty({std::ssize(rows), mask_.size(1)}, DType::int64);
  for (std::int64_t row = 0; row < std::ssize(rows); ++row) {
    copy(mask_.view().select(0, rows[static_cast<std::size_t>(row)]), mask.view().select(0, row));
  }
  mask_ = std::move(mask);
}

void GenerationBatch::append(std::span<const std::int64_t> tokens) {
  for (std::size_t row = 0; row < rows_.size(); ++row)
    rows_[row].push_back(tokens[row]);
  ++seqlen_;
}

}  // namespace flashmha::model
