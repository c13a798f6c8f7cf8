#include "model/generation_batch.h"

#include <algorithm>
#include <utility>

namespace flashmha::model {

GenerationBatch::GenerationBatch(const CausalLM& model, std::span<const Tokens> prompts,
                                 nn::KVCaches* caches)
    : model_(&model), caches_(caches), rows_(prompts.begin(), prompts.end()), seqlen_(0) {
  for (const Tokens& row : rows_)
    seqlen_ = std::max<std::int64_t>(seqlen_, std::ssize(row));
}

// int64 [num_rows, seqlen]; not defined if no row is padded.
Tensor GenerationBatch::left_padding_mask() const {
  if (std::ranges::all_of(rows_, [&](const Tokens& row) { return padding_of(row) == 0; }))
    return {};
  Tensor mask = Tensor::empty({num_rows(), seqlen_}, DType::int64);
  auto* line = mask.as<std::int64_t>();
  for (const Tokens& row : rows_) {
    std::fill_n(std::fill_n(line, padding_of(row), 0), std::ssize(row), 1);
    line += seqlen_;
  }
  return mask;
}

Tensor GenerationBatch::computed_logits(std::int64_t count) const {
  const Tensor ids = Tensor::zeros({num_rows(), count}, DType::int64);  // padding: token 0
  for (std::int64_t row = 0; row < num_rows(); ++row) {
    const std::span<const std::int64_t> all = tokens(row);
    const std::int64_t real = std::min(count, std::ssize(all));
    std::ranges::copy(all.last(static_cast<std::size_t>(real)),
                      ids.as<std::int64_t>() + (row + 1) * count - real);
  }
  const Tensor mask = left_padding_mask();
  return model_->forward(
      {.input_ids = ids, .attention_mask = mask, .caches = caches_, .last_logits_only = true});
}

const Tensor& GenerationBatch::decoded_logits() {
  if (!decode_) decode_.emplace(*model_, *caches_);
  std::vector<DecodeGraph::Row> rows;
  for (const Tokens& row : rows_) {
    rows.push_back(
        {.token = row.back(), .position = std::ssize(row) - 1, .leftpad = padding_of(row)});
  }
  return decode_->step(rows);
}

const Tensor& GenerationBatch::next_logits() {
  const std::int64_t count = seqlen_ - (caches_ ? caches_->seqlen() : 0);
  if (caches_ && count == 1 && DecodeGraph::serves(*model_, *caches_)) return decoded_logits();
  logits_ = computed_logits(count);
  return logits_;
}

void GenerationBatch::select(std::span<const std::int64_t> rows) {
  std::vector<Tokens> selected;
  selected.reserve(rows.size());
  for (const std::int64_t row : rows)
    selected.push_back(rows_[static_cast<std::size_t>(row)]);
  rows_ = std::move(selected);
  if (caches_) caches_->select(rows);
}

void GenerationBatch::append(std::span<const std::int64_t> tokens) {
  for (std::size_t row = 0; row < rows_.size(); ++row)
    rows_[row].push_back(tokens[row]);
  ++seqlen_;
}

}  // namespace flashmha::model
