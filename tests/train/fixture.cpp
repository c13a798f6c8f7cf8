#include "tests/train/fixture.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

namespace flashmha::test {

train::Corpus repeating_corpus(std::int64_t num_documents, std::int64_t longest, std::uint64_t seed,
                               std::int64_t vocab_size) {
  std::mt19937_64 random(seed);
  const auto below = [&](std::int64_t bound) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(bound));
  };
  train::Corpus corpus;
  for (std::int64_t index = 0; index < num_documents; ++index) {
    const std::int64_t loop[3] = {index == 0 ? vocab_size - 1 : below(vocab_size),
                                  below(vocab_size), below(vocab_size)};
    std::vector<std::int64_t> document(static_cast<std::size_t>(2 + below(longest - 1)));
    for (std::size_t i = 0; i < document.size(); ++i)
      document[i] = loop[i % 3];
    corpus.add(document);
  }
  return corpus;
}

std::vector<std::string> log_without_times(const std::string& output) {
  std::vector<std::string> lines;
  std::ifstream file(output + "/log.jsonl");
  for (std::string line; std::getline(file, line);) {
    nlohmann::json record = nlohmann::json::parse(line);
    record.erase("tokens_per_second");
    lines.push_back(record.dump());
  }
  return lines;
}

}  // namespace flashmha::test
