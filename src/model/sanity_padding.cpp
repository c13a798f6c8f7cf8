// Padded batches against each sequence alone.
#include <vector>

#include "flashmha/training.h"
#include "model/sanity_rules.h"

namespace flashmha::model {
namespace {

// The ids, -100 at padding.
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

}  // namespace

std::vector<PaddedRow> padded_rows(std::int64_t batch, std::int64_t seqlen, bool left) {
  std::vector<PaddedRow> rows;
  for (std::int64_t row = 0; row < batch; ++row) {
    const std::int64_t length = seqlen - row * seqlen / (batch + 1);
    rows.push_back(left ? PaddedRow{seqlen - length, seqlen} : PaddedRow{0, length});
  }
  return rows;
}

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

void check_padding(ModelTrio& models, const SanityOptions& options, const CheckReport& report) {
  const Tensor ids = random_ids(models, options.batch, options.seqlen, options.seed + 1);
  for (const bool left : {true, false}) {
    const std::string suffix = left ? ", left padding" : ", right padding";
    const std::vector<PaddedRow> rows = padded_rows(options.batch, options.seqlen, left);
    const Tensor mask = mask_of(rows, options.seqlen);
    const ModelInputs inputs{.input_ids = ids, .attention_mask = mask};
    const Tensor flash = real_rows(models.flash.forward(inputs), rows);
    const Tensor plain = real_rows(models.plain.forward(inputs), rows);
    const Tensor alone = alone_rows(models.reference, ids, rows);
    report(judge("logits" + suffix, {flash, plain, alone}, models.flash.config().dtype,
                 options.slack));
    check_training(suffix, models, inputs, labels_of(ids, rows), options.slack, report);
  }
}

}  // namespace flashmha::model
