#include "chunk_blocks.h"

#include <algorithm>

#include "check.h"

namespace videoar {
namespace {

// Splits first .. last into pieces of at most `most`, which differ by one token at most.
void split(int64_t first, int64_t last, int64_t frame, int64_t most,
           std::vector<QueryBlock> &blocks) {
  const int64_t count = (last - first + most - 1) / most;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = first + (last - first) * i / count;
    blocks.push_back({begin, first + (last - first) * (i + 1) / count - begin, frame});
  }
}

} // namespace

void check_sequence(const ChunkSequence &sequence) {
  const int64_t *starts = sequence.starts;
  VIDEOAR_CHECK(sequence.batch >= 0 && sequence.length >= 0 && sequence.frames >= 0, "batch ",
                sequence.batch, ", length ", sequence.length, ", frames ", sequence.frames);
  VIDEOAR_CHECK(starts && (sequence.ends || !sequence.length), "ends ", sequence.ends, ", starts ",
                starts);
  VIDEOAR_CHECK(starts[0] >= 0 && starts[sequence.frames] == sequence.length, "starts from ",
                starts[0], " to ", starts[sequence.frames], ", length ", sequence.length);
  for (int64_t i = 0; i < starts[0]; ++i)
    VIDEOAR_CHECK(sequence.ends[i] == i + 1, "ends[", i, "] = ", sequence.ends[i], " of text");
  for (int64_t frame = 0; frame < sequence.frames; ++frame) {
    VIDEOAR_CHECK(starts[frame] <= starts[frame + 1], "starts[", frame, "] = ", starts[frame]);
    for (int64_t i = starts[frame]; i < starts[frame + 1]; ++i) {
      const int64_t end = sequence.ends[i], before = i > starts[frame] ? sequence.ends[i - 1] : 0;
      VIDEOAR_CHECK(end > i && end >= before && end <= starts[frame + 1], "ends[", i, "] = ", end);
    }
  }
  for (int64_t row = 0; sequence.text_lengths && row < sequence.batch; ++row) {
    const int64_t real = sequence.text_lengths[row];
    VIDEOAR_CHECK(real >= 0 && real <= starts[0], "text_lengths[", row, "] = ", real, ", slots ",
                  starts[0]);
  }
}

std::vector<QueryBlock> query_blocks(const ChunkSequence &sequence, int64_t most) {
  std::vector<QueryBlock> blocks;
  split(0, sequence.starts[0], -1, most, blocks);
  for (int64_t frame = 0; frame < sequence.frames; ++frame)
    split(sequence.starts[frame], sequence.starts[frame + 1], frame, most, blocks);
  return blocks;
}

void key_blocks(const ChunkSequence &sequence, int64_t row, const QueryBlock &queries, int64_t most,
                std::vector<KeyBlock> &blocks) {
  blocks.clear();
  int64_t first = 0, last = 0, before = 0; // a run of keys, not yet written
  const auto write = [&] {
    for (; first < last; first += most) {
      const int64_t count = std::min(most, last - first);
      blocks.push_back({first, count, before});
      before += count;
    }
  };
  const auto add = [&](int64_t begin, int64_t end) {
    if (begin != last) {
      write();
      first = begin;
    }
    last = end;
  };
  const int64_t end = sequence.ends[queries.first + queries.count - 1];
  const int64_t text = sequence.text_lengths ? sequence.text_lengths[row] : sequence.starts[0];
  add(0, queries.frame < 0 ? std::min(text, end) : text);
  if (queries.frame >= 0) {
    const uint8_t *visible = sequence.visible;
    if (visible)
      visible += row * sequence.visible_row + queries.frame * sequence.visible_frame;
    for (int64_t frame = 0; frame < queries.frame; ++frame)
      if (!visible || visible[frame])
        add(sequence.starts[frame], sequence.starts[frame + 1]);
    add(sequence.starts[queries.frame], end);
  }
  write();
}

} // namespace videoar
