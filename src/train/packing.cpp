// Pieces of documents in sequences of one length.
#include <algorithm>
#include <numeric>
#include <set>

#include "core/check.h"
#include "flashmha/dataset.h"
#include "flashmha/training.h"

namespace flashmha::train {

PackedDataset::PackedDataset(Corpus corpus, std::int64_t seq_length)
    : corpus_(std::move(corpus)), seq_length_(seq_length), fingerprint_(corpus_.fingerprint()) {
  check(seq_length > 0, "[PackedDataset] seq_length ({}) must be positive", seq_length);
  const std::vector<Piece> pieces = cut();
  check(!pieces.empty(),
        "[PackedDataset] there must be a document of at least two tokens; got {} documents with {} "
        "tokens",
        corpus_.num_documents(), corpus_.num_tokens());
  pack(pieces);
}

std::vector<PackedDataset::Piece> PackedDataset::cut() const {
  std::vector<Piece> pieces;
  for (std::int64_t index = 0; index < corpus_.num_documents(); ++index) {
    const std::int64_t end = corpus_.start(index + 1) - 1;  // the last token has no next one
    for (std::int64_t begin = corpus_.start(index); begin < end; begin += seq_length_) {
      pieces.push_back({.begin = begin, .length = std::min(seq_length_, end - begin)});
    }
  }
  return pieces;
}

// Best-fit decreasing: the longest piece first, each into the fullest row that has room for it.
void PackedDataset::pack(const std::vector<Piece>& pieces) {
  std::vector<std::size_t> order(pieces.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(
      order, [&](std::size_t a, std::size_t b) { return pieces[a].length > pieces[b].length; });
  using Room = std::pair<std::int64_t, std::size_t>;  // free positions, row
  std::set<Room> rooms;                               // of the rows that are not full
  std::vector<std::size_t> row_of(pieces.size());
  std::vector<std::int64_t> row_sizes;  // in pieces
  for (const std::size_t piece : order) {
    Room room{seq_length_, row_sizes.size()};
    if (const auto best = rooms.lower_bound({pieces[piece].length, 0}); best != rooms.end()) {
      room = *best;
      rooms.erase(best);
    } else {
      row_sizes.push_back(0);
    }
    auto& [free, row] = room;
    row_of[piece] = row;
    ++row_sizes[row];
    num_targets_ += pieces[piece].length;
    free -= pieces[piece].length;
    if (free > 0) rooms.insert(room);
  }

  row_starts_.assign(1, 0);
  for (const std::int64_t size : row_sizes)
    row_starts_.push_back(row_starts_.back() + size);
  std::vector<std::int64_t> next(row_starts_.begin(), row_starts_.end() - 1);
  pieces_.resize(pieces.size());
  for (const std::size_t piece : order) {
    pieces_[static_cast<std::size_t>(next[row_of[piece]]++)] = pieces[piece];
  }
}

std::span<const PackedDataset::Piece> PackedDataset::pieces_of(std::int64_t sequence) const {
  check(sequence >= 0 && sequence < num_sequences(),
        "[PackedDataset] sequence ({}) must be in [0, {})", sequence, num_sequences());
  const auto row = static_cast<std::size_t>(sequence);
  return std::span(pieces_).subspan(
      static_cast<std::size_t>(row_starts_[row]),
      static_cast<std::size_t>(row_starts_[row + 1] - row_starts_[row]));
}

std::int64_t PackedDataset::num_targets(std::int64_t sequence) const {
  std::int64_t count = 0;
  for (const Piece& piece : pieces_of(sequence))
    count += piece.length;
  return count;
}

Batch PackedDataset::batch(std::span<const std::int64_t> sequences) const {
  check(!sequences.empty(), "[PackedDataset.batch] there must be a sequence");
  const auto rows = static_cast<std::int64_t>(sequences.size());
  Batch batch{.input_ids = Tensor::zeros({rows, seq_length_}, DType::int64),
              .targets = Tensor::empty({rows * seq_length_}, DType::int64),
              .packed = {},
              .num_targets = 0};
  fill(batch.targets, static_cast<double>(model::kIgnoreIndex));
  std::vector<std::int32_t> cu_seqlens{0};
  const std::int32_t* tokens = corpus_.tokens().data();
  const auto add = [&](std::int64_t length) {
    cu_seqlens.push_back(cu_seqlens.back() + static_cast<std::int32_t>(length));
    batch.packed.max_seqlen = std::max(batch.packed.max_seqlen, length);
  };
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t at = row * seq_length_;
    for (const Piece& piece : pieces_of(sequences[static_cast<std::size_t>(row)])) {
      const std::int32_t* from = tokens + piece.begin;
      std::copy(from, from + piece.length, batch.input_ids.as<std::int64_t>() + at);
      std::copy(from + 1, from + 1 + piece.length, batch.targets.as<std::int64_t>() + at);
      at += piece.length;
      batch.num_targets += piece.length;
      add(piece.length);
    }
    if (const std::int64_t padding = (row + 1) * seq_length_ - at; padding > 0) add(padding);
  }
  batch.packed.cu_seqlens = Tensor::from(std::span<const std::int32_t>(cu_seqlens),
                                         {static_cast<std::int64_t>(cu_seqlens.size())});
  return batch;
}

}  // namespace flashmha::train
