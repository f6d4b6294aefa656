// Which queries and keys of a training sequence meet: blocks of both (kernels/chunk_attention.py).
#pragma once

#include <cstdint>
#include <vector>

namespace videoar {

// A sequence of text, then frames. Query i sees the key j of its own frame (or of the text, if it
// is text) where j < ends[i]; a video query also sees the real text and the visible earlier frames.
struct ChunkSequence {
  int64_t batch, length, frames;
  const int64_t *ends;         // [length], one behind the last token of the query's chunk
  const int64_t *starts;       // [frames + 1], first token of each frame, maybe empty; the length
  const int64_t *text_lengths; // [batch], real text tokens; null: all before starts[0]
  const uint8_t *visible;      // [query frame, key frame] of a row; null: every earlier frame is
  int64_t visible_row, visible_frame; // elements between two rows, and two query frames
};

// Neighbouring queries of one frame, or of the text (frame -1).
struct QueryBlock {
  int64_t first, count, frame;
};

// Neighbouring keys; `before` of the keys that the block of queries sees come before them.
struct KeyBlock {
  int64_t first, count, before;
};

// Throws std::invalid_argument for tables that contradict each other.
void check_sequence(const ChunkSequence &sequence);

// All queries in blocks of at most `most`, those of a frame of much the same size.
std::vector<QueryBlock> query_blocks(const ChunkSequence &sequence, int64_t most);

// The keys that the last query of a block sees, in order, in blocks of at most `most`. The others
// see the first ones of them: see seen_keys.
void key_blocks(const ChunkSequence &sequence, int64_t row, const QueryBlock &queries, int64_t most,
                std::vector<KeyBlock> &blocks);

// How many of the block's `total` keys query i of it sees.
inline int64_t seen_keys(const ChunkSequence &sequence, const QueryBlock &queries, int64_t i,
                         int64_t total) {
  const int64_t end = sequence.ends[i];
  if (queries.frame < 0)
    return end < total ? end : total;
  return total - (sequence.ends[queries.first + queries.count - 1] - end);
}

} // namespace videoar
