// Data for the tests of training, and what they compare.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flashmha/dataset.h"

namespace flashmha::test {

// Documents of up to `longest` tokens below vocab_size, each of three tokens in a loop. The highest
// token occurs.
train::Corpus repeating_corpus(std::int64_t num_documents, std::int64_t longest, std::uint64_t seed,
                               std::int64_t vocab_size = 50);

// The lines of a run's log.jsonl without what a clock decides.
std::vector<std::string> log_without_times(const std::string& output);

}  // namespace flashmha::test
