// What the parts of the sanity check share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flashmha/sanity.h"

namespace flashmha::model {

// The same quantity from the three models.
struct Outcome {
  TensorView flash;
  TensorView plain;
  TensorView reference;
};

// Error that two correct ways of computing may differ by: a few hundred roundings of float32 add up
// over the layers; in 16 bits the baseline's own error says how many, and half an ulp is granted.
double rounding_floor(DType dtype);

// Error of flash; tolerance: slack times that of plain, plus the floor.
Check judge(std::string name, const Outcome& outcome, DType dtype, double slack);

// Loss and every gradient; suffix is appended to their names.
void check_training(const std::string& suffix, ModelTrio& models, const ModelInputs& inputs,
                    const TensorView& labels, double slack, const CheckReport& report);

// int64 [batch, seqlen] in the vocabulary.
Tensor random_ids(const ModelTrio& models, std::int64_t batch, std::int64_t seqlen,
                  std::uint64_t seed);

// Columns [begin, end) of a row hold its real tokens.
struct PaddedRow {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// Row b of a batch holds seqlen - b * seqlen / (batch + 1) real tokens.
std::vector<PaddedRow> padded_rows(std::int64_t batch, std::int64_t seqlen, bool left);

// int64 [rows.size(), seqlen]: 1 at real tokens.
Tensor mask_of(const std::vector<PaddedRow>& rows, std::int64_t seqlen);

}  // namespace flashmha::model
