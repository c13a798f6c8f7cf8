// Text as training data: read, tokenised once, split, packed into sequences, shuffled.
//
//   train::Corpus corpus = train::read_corpus({"books/"}, tokenizer);
//   auto [training, evaluation] = train::split_corpus(std::move(corpus), 0.05);
//   train::PackedDataset dataset(std::move(training), /*seq_length=*/512);
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "flashmha/model.h"
#include "flashmha/padding.h"
#include "flashmha/tensor.h"

namespace flashmha::text {
class Tokenizer;
}

namespace flashmha::train {

// Documents as token ids, one after another in memory: 4 bytes a token.
class Corpus {
 public:
  // Throws invalid_argument for ids below 0 or above 2^31 - 1.
  void add(std::span<const std::int64_t> document);
  void add(std::span<const std::int32_t> document);

  std::int64_t num_documents() const { return std::int64_t(starts_.size()) - 1; }
  std::int64_t num_tokens() const { return starts_.back(); }
  std::span<const std::int32_t> document(std::int64_t index) const;
  std::span<const std::int32_t> tokens() const { return tokens_; }
  // Where document `index` starts in tokens(); index may be num_documents().
  std::int64_t start(std::int64_t index) const { return starts_[std::size_t(index)]; }

  std::int32_t largest_token() const;  // -1 if there is none
  // Changes with any token and any document's end: tells one corpus from another.
  std::uint64_t fingerprint() const;

 private:
  std::vector<std::int32_t> tokens_;
  std::vector<std::int64_t> starts_{0};
};

struct CorpusOptions {
  // Cuts text files into documents; empty: a file is a document. Lines of *.jsonl files are always
  // one document each, the string "text" of the line's object.
  std::string document_separator;
  // Called before each file is read.
  std::function<void(const std::string& path, std::int64_t num_files)> on_file;
};

// What read_corpus met.
struct CorpusReport {
  std::int64_t num_files = 0;  // read and used
  std::int64_t num_bytes = 0;  // of those
  // Files of folders that were left out, because they hold a NUL byte or nothing. (A binary file
  // that is named itself is an error.)
  std::int64_t num_binary_files = 0;
  std::int64_t num_empty_files = 0;
};

// Reads files, and folders recursively: every file whose name does not start with a dot, in the
// order of their paths; one that several links lead to counts once. Every document ends with the
// tokenizer's end token, if it has one. Throws io for what cannot be read, invalid_argument for a
// .jsonl line without "text" and if there is no text at all.
Corpus read_corpus(std::span<const std::string> paths, const text::Tokenizer& tokenizer,
                   const CorpusOptions& options = {}, CorpusReport* report = nullptr);

// Two parts of a corpus.
struct CorpusSplit {
  Corpus training;
  Corpus evaluation;
};

// Holds whole documents out for evaluation: a fixed pseudo-random choice of those that fit into
// `evaluation_fraction` of all tokens; the shortest if none fits; of a single document its end. The
// choice depends on the documents' order and lengths only. 0: evaluation stays empty.
CorpusSplit split_corpus(Corpus corpus, double evaluation_fraction);

// Rows of a PackedDataset, ready for the model.
struct Batch {
  Tensor input_ids;          // int64 [batch, seq_length]
  Tensor targets;            // int64 [batch * seq_length], kIgnoreIndex in padding
  PackedSequences packed;    // the pieces of documents; padding at a row's end is a piece, too
  std::int64_t num_targets;  // that are not kIgnoreIndex

  // Views of this batch, which must stay where it is while they are used.
  model::ModelInputs inputs() const { return {.input_ids = input_ids, .packed = &packed}; }
};

// A corpus cut and packed into sequences of seq_length tokens, in which every token but a
// document's first is the target of exactly one position, and attention never leaves a document.
//
// A document of n tokens gives n - 1 pairs of (token, next token). Documents of more than
// seq_length pairs are cut, into pieces of seq_length and a rest; shorter ones stay whole. Pieces
// are packed by best-fit decreasing (Ding et al. 2024, "Fewer truncations improve language
// modeling"), once: epochs differ in the order of the sequences.
class PackedDataset {
 public:
  // Throws invalid_argument if seq_length is not positive, or nothing is there to be predicted.
  PackedDataset(Corpus corpus, std::int64_t seq_length);

  std::int64_t seq_length() const { return seq_length_; }
  std::int64_t num_sequences() const { return std::int64_t(row_starts_.size()) - 1; }
  std::int64_t num_targets() const { return num_targets_; }
  std::int64_t num_targets(std::int64_t sequence) const;
  const Corpus& corpus() const { return corpus_; }
  std::uint64_t fingerprint() const { return fingerprint_; }  // of the corpus

  // The given sequences as rows of a batch.
  Batch batch(std::span<const std::int64_t> sequences) const;

 private:
  // Positions [begin, begin + length) of the corpus are inputs, those one later the targets.
  struct Piece {
    std::int64_t begin;
    std::int64_t length;
  };

  std::vector<Piece> cut() const;
  void pack(const std::vector<Piece>& pieces);
  std::span<const Piece> pieces_of(std::int64_t sequence) const;

  Corpus corpus_;
  std::int64_t seq_length_;
  std::uint64_t fingerprint_;
  std::int64_t num_targets_ = 0;
  std::vector<Piece> pieces_;             // sequence by sequence
  std::vector<std::int64_t> row_starts_;  // [num_sequences + 1] into pieces_
};

// A pseudo-random order of [0, count) that depends on (seed, epoch) only, without a table: a
// Feistel network of 6 rounds over the next power of 4, whose values beyond count are sent through
// again until they fall inside (cycle walking; Black & Rogaway 2002, "Ciphers with arbitrary finite
// domains"). The same on every platform.
class Shuffle {
 public:
  Shuffle(std::int64_t count, std::uint64_t seed, std::uint64_t epoch);

  // Which element comes at `position`, both in [0, count).
  std::int64_t operator()(std::int64_t position) const;

 private:
  std::uint64_t count_;
  int half_bits_ = 0;
  std::uint64_t key_;
};

}  // namespace flashmha::train
