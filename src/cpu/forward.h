#pragma once

#include <cstddef>
#include <span>

#include "cpu/attention_host.h"

namespace flashmha::cpu {

// Sequences with at most this many query rows for each key head (queries times heads of a group)
// stream keys in place (decode.cpp); longer ones are tiled (forward.cpp). It decides for each
// sequence by its own lengths, so that a sequence gives the same bits in every batch.
constexpr std::int64_t kStreamRows = 16;

inline bool streams(const Problem& problem, const Sequence& sequence) {
  return sequence.seqlen_q * problem.group_size() <= kStreamRows;
}

constexpr std::int64_t kBlockM = 96;        // query rows of a tile
constexpr std::int64_t kStreamBlock = 256;  // keys that a streaming task takes at a time

// Sizes that follow from the problem.
struct ForwardGeometry {
  std::int64_t block_n;   // keys of a packed block
  std::int64_t q_stride;  // of a tile's rows
  std::int64_t out_stride;
  std::int64_t score_stride;
  std::int64_t key_floats;  // of a packed block
  std::int64_t value_floats;

  explicit ForwardGeometry(const Problem& problem);
};

// Scratch of one worker, for either way.
struct ForwardScratch {
  QueryTile tile;
  Span* visible;
  ScoreOptions* options;
  DropoutRows* dropouts;
  const void** keys;
  const void** values;
  QueryTile* tiles;  // streaming: one for each key head

  ForwardScratch(Arena& arena, const Problem& problem);
};

// What both ways do around the blocks of keys: rows [first_row, first_row + num_rows) of the heads
// [first_head, first_head + num_heads) of one sequence.
struct TileRows {
  Sequence sequence;
  std::int64_t first_head;
  std::int64_t num_heads;
  std::int64_t first_row;
  std::int64_t num_rows;
};
void begin_tile(const Problem& problem, const AttentionCall& call, const TileRows& rows,
                ForwardScratch& scratch);
void end_tile(const Problem& problem, const AttentionCall& call, const TileRows& rows,
              const QueryTile& tile);

std::size_t forward_workspace_bytes(const Problem& problem);
void launch_forward(const Problem& problem, const AttentionCall& call,
                    std::span<std::byte> workspace, Stream stream);

// decode.cpp: the sequences that stream. most_rows: query rows of one of them for each key head.
std::int64_t most_rows(const Problem& problem);
std::size_t stream_shared_bytes(const Problem& problem);
void attend_streaming(const Problem& problem, const AttentionCall& call, const Slices& slices,
                      std::span<std::byte> shared);

// append_kv.cpp: writes the new keys, rotated, and values into the cache.
void append_kv(const Problem& problem, const AttentionCall& call);

}  // namespace flashmha::cpu
