// Small models and inputs for the tests of the model room.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "flashmha/model.h"
#include "tests/seed.h"

namespace flashmha::test {

// Two layers, hidden 32, 4 query heads on 2 key heads of 8, vocabulary 50.
model::ModelConfig tiny_config(model::AttentionKind kind = model::AttentionKind::flash);

// int64 [batch, seqlen] in [0, vocab_size).
Tensor random_ids(std::int64_t batch, std::int64_t seqlen, std::int64_t vocab_size,
                  std::uint64_t seed);

// int64 [lengths.size(), longest]: each row's real tokens on the right.
Tensor left_padding_mask(const std::vector<std::int64_t>& lengths);

// What is generated for each prompt.
using Tokens = std::vector<std::int64_t>;

// Weights of the first seed from `seed` on with which generated(), tokens of this model, does not
// hang on rounding: models whose weights are off by 1e-5 of themselves give the same. Then every
// way to compute them must choose the same tokens. Returns them.
std::vector<Tokens> init_clear_choices(model::CausalLM& model, std::uint64_t seed,
                                       const std::function<std::vector<Tokens>()>& generated);

using NamedTensors = std::map<std::string, TensorView>;
NamedTensors weights_of(model::CausalLM& model);
NamedTensors gradients_of(model::CausalLM& model);

}  // namespace flashmha::test
