// Corpus, split, packing and shuffle.
#include "flashmha/dataset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "flashmha/random.h"
#include "flashmha/sanity.h"
#include "flashmha/training.h"
#include "tests/core/expect_error.h"
#include "tests/model/fixture.h"

namespace flashmha {
namespace {

using namespace test;
using train::Corpus;
using train::PackedDataset;
using train::Shuffle;
using Ids = std::vector<std::int64_t>;

// Documents of random lengths in [0, longest].
Corpus random_corpus(std::int64_t num_documents, std::int64_t longest, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Corpus corpus;
  for (std::int64_t index = 0; index < num_documents; ++index) {
    Ids document(random() % static_cast<std::uint64_t>(longest + 1));
    for (std::int64_t& token : document)
      token = static_cast<std::int64_t>(random() % 50);
    corpus.add(document);
  }
  return corpus;
}

// A corpus whose tokens are all different: token i is i.
Corpus numbered_corpus(const std::vector<std::int64_t>& lengths) {
  Corpus corpus;
  std::int64_t next = 0;
  for (const std::int64_t length : lengths) {
    Ids document(static_cast<std::size_t>(length));
    std::iota(document.begin(), document.end(), next);
    next += length;
    corpus.add(document);
  }
  return corpus;
}

Ids all_sequences(const PackedDataset& dataset) {
  Ids rows(static_cast<std::size_t>(dataset.num_sequences()));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

TEST(Corpus, refuses_tokens_that_do_not_fit) {
  Corpus corpus;
  corpus.add(Ids{1, 2, 3});
  expect_error(ErrorCode::invalid_argument, {"[Corpus.add] tokens must be in [0, 2^31); got -1"},
               [&] {
                 corpus.add(Ids{5, -1});
               });
  expect_error(ErrorCode::invalid_argument, {"got 2147483648"},
               [&] { corpus.add(Ids{std::int64_t{1} << 31}); });
  EXPECT_EQ(corpus.num_documents(), 1);
  EXPECT_EQ(corpus.num_tokens(), 3);
  EXPECT_EQ(corpus.largest_token(), 3);
}

TEST(Corpus, fingerprint_sees_tokens_and_borders) {
  const auto of = [](const std::vector<Ids>& documents) {
    Corpus corpus;
    for (const Ids& document : documents)
      corpus.add(document);
    return corpus.fingerprint();
  };
  EXPECT_EQ(of({{1, 2}, {3}}), of({{1, 2}, {3}}));
  EXPECT_NE(of({{1, 2}, {3}}), of({{1}, {2, 3}}));
  EXPECT_NE(of({{1, 2}, {3}}), of({{2, 1}, {3}}));
  EXPECT_NE(of({{1, 2}, {3}}), of({{1, 2, 3}}));
}

// Every token but a document's first is the target of one position, whose input is the token before
// it; what a position may attend to is a run of tokens of one document.
TEST(Packing, covers_every_token_once_and_never_crosses_documents) {
  std::mt19937_64 random(test_seed());
  for (const std::int64_t seq_length : {1, 7, 16, 64}) {
    std::vector<std::int64_t> lengths(60);
    for (std::int64_t& length : lengths)
      length = static_cast<std::int64_t>(random() % 40);
    const PackedDataset dataset(numbered_corpus(lengths), seq_length);
    std::set<std::int64_t> first_tokens;
    for (std::int64_t document = 0; document < 60; ++document)
      first_tokens.insert(dataset.corpus().start(document));

    std::map<std::int64_t, int> seen;
    std::int64_t num_targets = 0;
    for (const std::int64_t row : all_sequences(dataset)) {
      const train::Batch batch = dataset.batch({{row}});
      EXPECT_EQ(batch.num_targets, dataset.num_targets(row));
      const auto* ids = batch.input_ids.as<std::int64_t>();
      const auto* targets = batch.targets.as<std::int64_t>();
      const auto* ends = batch.packed.cu_seqlens.as<std::int32_t>();
      ASSERT_EQ(ends[batch.packed.cu_seqlens.numel() - 1], seq_length);
      for (std::int64_t piece = 0; piece + 1 < batch.packed.cu_seqlens.numel(); ++piece) {
        EXPECT_LE(ends[piece + 1] - ends[piece], batch.packed.max_seqlen);
        for (std::int32_t at = ends[piece]; at < ends[piece + 1]; ++at) {
          if (targets[at] == model::kIgnoreIndex) {
            EXPECT_EQ(piece + 2, batch.packed.cu_seqlens.numel()) << "padding inside a sequence";
            continue;
          }
          EXPECT_EQ(targets[at], ids[at] + 1);
          EXPECT_FALSE(first_tokens.contains(targets[at])) << "a document's first token";
          if (at > ends[piece]) {
            EXPECT_EQ(ids[at], targets[at - 1]);
          }
          ++seen[targets[at]];
        }
      }
      num_targets += batch.num_targets;
    }
    EXPECT_EQ(num_targets, dataset.num_targets());
    for (std::int64_t document = 0; document < 60; ++document) {
      for (std::int64_t token = dataset.corpus().start(document) + 1;
           token < dataset.corpus().start(document + 1); ++token) {
        EXPECT_EQ(seen[token], 1) << "token " << token << ", seq_length " << seq_length;
      }
    }
  }
}

TEST(Packing, keeps_short_documents_whole_and_rows_full) {
  const PackedDataset dataset(numbered_corpus({4, 9, 3, 21, 6, 1, 0}), 8);
  // Pairs: 3, 8, 2, 8 + 8 + 4, 5, 0, 0; 3 + 5 and 4 + 2 share rows.
  EXPECT_EQ(dataset.num_targets(), 38);
  EXPECT_EQ(dataset.num_sequences(), 5);
  EXPECT_EQ(dataset.num_targets(4), 6);

  const PackedDataset random(random_corpus(500, 100, test_seed()), 64);
  const double fill = double(random.num_targets()) / double(random.num_sequences() * 64);
  EXPECT_GT(fill, 0.97);
}

TEST(Packing, refuses_what_has_nothing_to_predict) {
  expect_error(ErrorCode::invalid_argument,
               {"[PackedDataset] there must be a document of at least"}, [] {
                 PackedDataset(numbered_corpus({1, 0, 1}), 8);
               });
  expect_error(ErrorCode::invalid_argument, {"seq_length (0) must be positive"},
               [] { PackedDataset(numbered_corpus({4}), 0); });
  const PackedDataset dataset(numbered_corpus({4}), 8);
  expect_error(ErrorCode::invalid_argument, {"sequence (1) must be in [0, 1)"},
               [&] { (void)dataset.batch(Ids{1}); });
}

// Packed together, documents give the loss and the gradients that they give alone.
TEST(Packing, trains_as_each_document_alone) {
  for (const model::AttentionKind kind :
       {model::AttentionKind::flash, model::AttentionKind::plain}) {
    const PackedDataset dataset(random_corpus(12, 30, test_seed() + 1), 32);
    model::CausalLM packed(tiny_config(kind));
    packed.init_weights(test_seed());
    const train::Batch batch = dataset.batch(all_sequences(dataset));
    const model::Loss loss = compute_gradients(packed, batch.inputs(), batch.targets);
    EXPECT_EQ(loss.num_tokens, dataset.num_targets());

    model::CausalLM alone(tiny_config(kind));
    alone.init_weights(test_seed());
    double sum = 0.0;
    for (std::int64_t index = 0; index < dataset.corpus().num_documents(); ++index) {
      const std::span<const std::int32_t> document = dataset.corpus().document(index);
      if (document.size() < 2) continue;
      const Tensor ids = Tensor::from(document, {1, static_cast<std::int64_t>(document.size())});
      const float share = float(document.size() - 1) / float(loss.num_tokens);
      sum += share * accumulate_gradients(alone, {.input_ids = ids}, ids, share).mean;
    }
    EXPECT_NEAR(loss.mean, sum, 1e-5);
    for (const auto& [name, gradient] : gradients_of(alone)) {
      EXPECT_LT(model::relative_error(gradients_of(packed).at(name), gradient), 5e-5) << name;
    }
  }
}

TEST(Shuffle, is_a_permutation_that_changes_with_seed_and_epoch) {
  for (const std::int64_t count : {1, 2, 3, 5, 64, 65, 1000, 4097}) {
    const Shuffle shuffle(count, test_seed(), 0);
    Ids order;
    for (std::int64_t position = 0; position < count; ++position)
      order.push_back(shuffle(position));
    Ids sorted = order;
    std::ranges::sort(sorted);
    for (std::int64_t i = 0; i < count; ++i)
      ASSERT_EQ(sorted[static_cast<std::size_t>(i)], i) << "of " << count;
    if (count < 64) continue;
    for (const Shuffle& other :
         {Shuffle(count, test_seed(), 1), Shuffle(count, test_seed() + 1, 0)}) {
      std::int64_t num_equal = 0;
      for (std::int64_t position = 0; position < count; ++position)
        num_equal += other(position) == order[static_cast<std::size_t>(position)] ? 1 : 0;
      EXPECT_LT(num_equal, 12) << "of " << count;  // 1 is expected
    }
  }
}

// The order is part of what a run is: it must not change with the platform, nor by accident.
TEST(Shuffle, is_the_same_everywhere) {
  const Shuffle shuffle(10, /*seed=*/1, /*epoch=*/0);
  Ids order;
  for (std::int64_t position = 0; position < 10; ++position)
    order.push_back(shuffle(position));
  EXPECT_EQ(order, (Ids{2, 0, 5, 4, 7, 8, 1, 6, 9, 3}));
}

// No position prefers any element: every cell of the table of counts is within 6 standard
// deviations of its expectation.
TEST(Shuffle, is_uniform) {
  constexpr std::int64_t kCount = 10;
  constexpr int kEpochs = 10'000;
  std::vector<int> counts(kCount * kCount);
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    const Shuffle shuffle(kCount, test_seed(), static_cast<std::uint64_t>(epoch));
    for (std::int64_t position = 0; position < kCount; ++position)
      ++counts[static_cast<std::size_t>(position * kCount + shuffle(position))];
  }
  const double expected = double(kEpochs) / kCount;
  for (const int count : counts)
    EXPECT_NEAR(count, expected, 6.0 * std::sqrt(expected));
}

TEST(Split, holds_out_whole_documents_once) {
  const Corpus corpus = random_corpus(200, 60, test_seed());
  const train::CorpusSplit split = split_corpus(corpus, 0.1);
  EXPECT_EQ(split.training.num_documents() + split.evaluation.num_documents(), 200);
  EXPECT_EQ(split.training.num_tokens() + split.evaluation.num_tokens(), corpus.num_tokens());
  const double share = double(split.evaluation.num_tokens()) / double(corpus.num_tokens());
  EXPECT_LE(share, 0.1);
  EXPECT_GT(share, 0.08);
  std::multiset<Ids> before;
  std::multiset<Ids> after;
  const auto collect = [](const Corpus& part, std::multiset<Ids>& into) {
    for (std::int64_t index = 0; index < part.num_documents(); ++index)
      into.emplace(part.document(index).begin(), part.document(index).end());
  };
  collect(corpus, before);
  collect(split.training, after);
  collect(split.evaluation, after);
  EXPECT_EQ(before, after);
  EXPECT_EQ(split_corpus(corpus, 0.1).evaluation.fingerprint(), split.evaluation.fingerprint());
}

TEST(Split, takes_the_shortest_document_or_the_end_of_the_only_one) {
  const train::CorpusSplit two = train::split_corpus(numbered_corpus({50, 40, 60}), 0.05);
  EXPECT_EQ(two.evaluation.num_tokens(), 40);
  EXPECT_EQ(two.evaluation.tokens()[0], 50);

  const train::CorpusSplit one = train::split_corpus(numbered_corpus({100}), 0.05);
  EXPECT_EQ(one.training.num_tokens(), 95);
  EXPECT_EQ(one.evaluation.num_tokens(), 5);
  EXPECT_EQ(one.evaluation.tokens()[0], 95);

  EXPECT_EQ(train::split_corpus(numbered_corpus({100}), 0.0).evaluation.num_documents(), 0);
  expect_error(ErrorCode::invalid_argument, {"evaluation_fraction (0.6) must be in [0, 0.5]"},
               [] { train::split_corpus(numbered_corpus({100}), 0.6); });
}

}  // namespace
}  // namespace flashmha
