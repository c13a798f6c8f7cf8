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

}  // namespace

PieceCache::PieceCache(std::size_t text_bytes)
    : entries_(std::bit_ceil(std::clamp<std::size_t>(text_bytes / 16, 16, 32768))) {}

PieceCache::Entry& PieceCache::entry_of(std::string_view piece) {
  return entries_[std::hash<std::string_view>{}(piece) & (entries_.size() - 1)];
}

Bpe::Bpe(TokenTable vocabulary, const std::vector<Merge>& merges, bool ignore_merges,
         std::int64_t unknown_id)
    : ignore_merges_(ignore_merges) {
  for (std::size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    const char symbol = static_cast<char>(byte);
    const std::optional<std::uint32_t> id = vocabulary.find({&symbol, 1});
    byte_ids_[byte] = id ? *id : unknown_id;
  }
  merges_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    merges_.set(std::uint64_t{merge.left} << 32U | merge.right,
                std::uint64_t{rank} << 32U | merge.merged);
  }
  if (ignore_merges) vocabulary_ = std::move(vocabulary);
}

void Bpe::encode(std::string_view piece, PieceCache& cache, std::vector<std::int64_t>& ids) const {
  if (piece.empty()) return;
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
  if (ignore_merges_) {
    if (const std::optional<std::uint32_t> id = vocabulary_.find(piece)) {
      ids.push_back(*id);
      return;
    }
  }
  Symbols symbols;
  symbols.reserve(piece.size());
  for (const char c : piece) {
    const std::int64_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id >= 0) symbols.push_back(static_cast<std::uint32_t>(id));
  }
  if (symbols.size() <= kShort) {
    merge_short(symbols);
  } else if (!merges_.empty()) {
    merge_long(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

// Finds the lowest rank, the leftmost of equal ones, by looking at all.
void Bpe::merge_short(Symbols& symbols) const {
  std::array<std::uint64_t, kShort> merges{};  // [i]: of symbols i and i + 1
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
    merges[i] = merge_of(symbols[i], symbols[i + 1]);
  }
  while (symbols.size() > 1) {
    const auto end = merges.begin() + static_cast<std::ptrdiff_t>(symbols.size() - 1);
    const auto best = std::min_element(merges.begin(), end);
    if (*best == FlatMap::kNone) return;
    const auto i = best - merges.begin();
    const auto at = static_cast<std::size_t>(i);
    symbols[at] = static_cast<std::uint32_t>(*best);
    symbols.erase(symbols.begin() + i + 1);
    if (best + 1 != end) std::move(best + 2, end, best + 1);
    if (at + 1 < symbols.size()) merges[at] = merge_of(symbols[at], symbols[at + 1]);
    if (at > 0) merges[at - 1] = merge_of(symbols[at - 1], symbols[at]);
  }
}

// The same in n log n: a queue of possible merges over a linked list of symbols.
void Bpe::merge_long(Symbols& symbols) const {
  const std::size_t size = symbols.size();
  std::vector<std::size_t> next(size);
  std::vector<std::size_t> previous(size);
  using Candidate = std::pair<std::uint64_t, std::size_t>;  // merge, position of its left symbol
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto propose = [&](std::size_t left) {
    const std::uint64_t merge = merge_of(symbols[left], symbols[next[left]]);
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
    if (symbols[left] == kGone || right == size) continue;
    if (merge_of(symbols[left], symbols[right]) != merge) continue;
    symbols[left] = static_cast<std::uint32_t>(merge);
    symbols[right] = kGone;
    next[left] = next[right];
    if (next[left] < size) {
      previous[next[left]] = left;
      propose(left);
    }
    if (left > 0) propose(previous[left]);
  }
  std::erase(symbols, kGone);
}

}  // namespace flashmha::text
