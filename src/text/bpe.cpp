#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>
#include <utility>

namespace flashmha::text {
namespace {

// Up to this many symbols a scan for the next merge is faster than a queue.
constexpr std::size_t kShort = 48;

constexpr std::uint32_t kGone = ~0U;  // a symbol that was merged into the one before it

// The end of the word that a piece begins with.
std::size_t word_end(std::string_view piece) {
  std::size_t mark = piece.find(kWordMark, 1);
  while (mark != std::string_view::npos && piece.substr(0, mark).ends_with(kWordMark))
    mark = piece.find(kWordMark, mark + kWordMark.size());
  return std::min(mark, piece.size());
}

}  // namespace

bool leaves_word(std::string_view token) {
  return word_end(token) != token.size();
}

PieceCache::PieceCache(std::size_t text_bytes)
    : entries_(std::bit_ceil(std::clamp<std::size_t>(text_bytes / 16, 16, 32768))) {}

PieceCache::Entry& PieceCache::entry_of(std::string_view piece) {
  return entries_[std::hash<std::string_view>{}(piece) & (entries_.size() - 1)];
}

Bpe::Bpe(Symbols symbols, const std::vector<Merge>& merges, BpeOptions options)
    : symbols_(std::move(symbols)), options_(std::move(options)) {
  merges_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    merges_.set(std::uint64_t{merge.left} << 32U | merge.right,
                std::uint64_t{rank} << 32U | merge.merged);
  }
}

void Bpe::encode(std::string_view piece, PieceCache& cache, std::vector<std::int64_t>& ids) const {
  while (!piece.empty()) {
    const std::size_t end = options_.merges_stay_in_words ? word_end(piece) : piece.size();
    encode_word(piece.substr(0, end), cache, ids);
    piece.remove_prefix(end);
  }
}

void Bpe::encode_word(std::string_view piece, PieceCache& cache,
                      std::vector<std::int64_t>& ids) const {
  if (piece.size() > PieceCache::kMaxBytes) return encode_uncached(piece, ids);
  PieceCache::Entry& entry = cache.entry_of(piece);
  if (entry.holds(piece)) {
    ids.insert(ids.end(), entry.ids.begin(), entry.ids.begin() + entry.num_ids);
    return;
  }
  const std::size_t begin = ids.size();
  encode_uncached(piece, ids);
  const std::size_t num_ids = ids.size() - begin;
  if (num_ids > PieceCache::kMaxIds) return;
  entry.length = static_cast<std::uint8_t>(piece.size());
  entry.num_ids = static_cast<std::uint8_t>(num_ids);
  std::copy(piece.begin(), piece.end(), entry.piece.begin());
  std::transform(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end(), entry.ids.begin(),
                 [](std::int64_t id) { return static_cast<std::uint32_t>(id); });
}

void Bpe::encode_uncached(std::string_view piece, std::vector<std::int64_t>& ids) const {
  if (options_.whole_pieces) {
    if (const std::optional<std::uint32_t> id = options_.whole_pieces->find(piece)) {
      ids.push_back(*id);
      return;
    }
  }
  Tokens tokens;
  tokens.reserve(piece.size());
  symbols_.append(piece, tokens);
  if (tokens.size() <= kShort) {
    merge_short(tokens);
  } else if (!merges_.empty()) {
    merge_long(tokens);
  }
  ids.insert(ids.end(), tokens.begin(), tokens.end());
}

// Finds the lowest rank, the leftmost of equal ones, by looking at all.
void Bpe::merge_short(Tokens& tokens) const {
  std::array<std::uint64_t, kShort> merges{};  // [i]: of symbols i and i + 1
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    merges[i] = merge_of(tokens[i], tokens[i + 1]);
  }
  while (tokens.size() > 1) {
    const auto end = merges.begin() + static_cast<std::ptrdiff_t>(tokens.size() - 1);
    const auto best = std::min_element(merges.begin(), end);
    if (*best == FlatMap::kNone) return;
    const auto i = best - merges.begin();
    const auto at = static_cast<std::size_t>(i);
    tokens[at] = static_cast<std::uint32_t>(*best);
    tokens.erase(tokens.begin() + i + 1);
    if (best + 1 != end) std::move(best + 2, end, best + 1);
    if (at + 1 < tokens.size()) merges[at] = merge_of(tokens[at], tokens[at + 1]);
    if (at > 0) merges[at - 1] = merge_of(tokens[at - 1], tokens[at]);
  }
}

// The same in n log n: a queue of possible merges over a linked list of tokens.
void Bpe::merge_long(Tokens& tokens) const {
  const std::size_t size = tokens.size();
  std::vector<std::size_t> next(size);
  std::vector<std::size_t> previous(size);
  using Candidate = std::pair<std::uint64_t, std::size_t>;  // merge, position of its left symbol
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto propose = [&](std::size_t left) {
    const std::uint64_t merge = merge_of(tokens[left], tokens[next[left]]);
    if (merge != FlatMap::kNone) queue.emplace(merge, left);
  };
  for (std::size_t i = 0; i < size; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;
  }
  for (std::size_t i = 0; i + 1 < size; ++i)
    propose(i);
  while (!queue.empty()) {
    const auto [merge, left] = queue.top();
    queue.pop();
    // A neighbour may have been merged since this was proposed.
    const std::size_t right = next[left];
    if (tokens[left] == kGone || right == size) continue;
    if (merge_of(tokens[left], tokens[right]) != merge) continue;
    tokens[left] = static_cast<std::uint32_t>(merge);
    tokens[right] = kGone;
    next[left] = next[right];
    if (next[left] < size) {
      previous[next[left]] = left;
      propose(left);
    }
    if (left > 0) propose(previous[left]);
  }
  std::erase(tokens, kGone);
}

}  // namespace flashmha::text
