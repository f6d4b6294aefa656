#include "bands.h"

#include <algorithm>
#include <cmath>

#include "check.h"

namespace videoar {
namespace {

constexpr int64_t kMaxLength = int64_t{1} << 30;

struct Entry {
  int64_t row;
  int64_t column;
  double weight;
};

// The formulas of _area, _bilinear and _nearest in kernels/resample.py, in the same order of
// float64 operations, so that the rounded weights are the same.
std::vector<Entry> entries_of_row(int64_t i, int64_t in, int64_t out, ResampleMode mode) {
  if (mode == ResampleMode::nearest)
    return {{i, i * in / out, 1.0}};
  if (mode == ResampleMode::bilinear) {
    const double centre =
        (static_cast<double>(i) + 0.5) * static_cast<double>(in) / static_cast<double>(out) - 0.5;
    const double source = std::max(centre, 0.0);
    const int64_t low = std::min(static_cast<int64_t>(source), in - 1);
    const double weight = source - static_cast<double>(low);
    if (low == in - 1)
      return {{i, low, 1 - weight + weight}};
    return {{i, low, 1 - weight}, {i, low + 1, weight}};
  }
  const int64_t start = i * in / out, stop = ((i + 1) * in + out - 1) / out;
  std::vector<Entry> entries;
  for (int64_t column = start; column < stop; ++column)
    entries.push_back({i, column, 1.0 / static_cast<double>(stop - start)});
  return entries;
}

} // namespace

void check_grid(const char *name, const Grid &grid) {
  VIDEOAR_CHECK(grid.height >= 1 && grid.width >= 1 && grid.height <= kMaxLength &&
                    grid.width <= kMaxLength,
                name, " ", grid.height, " x ", grid.width);
}

BandTable::BandTable(int64_t length_in, int64_t length_out, ResampleMode mode, bool transposed)
    : taps_(1), length_in_(transposed ? length_out : length_in),
      length_out_(transposed ? length_in : length_out) {
  VIDEOAR_CHECK(length_in >= 1 && length_in <= kMaxLength && length_out >= 1 &&
                    length_out <= kMaxLength,
                "length_in ", length_in, ", length_out ", length_out);
  VIDEOAR_CHECK(mode == ResampleMode::area || mode == ResampleMode::bilinear ||
                    mode == ResampleMode::nearest,
                "mode ", static_cast<int>(mode));
  std::vector<Entry> entries;
  for (int64_t i = 0; i < length_out; ++i)
    for (Entry entry : entries_of_row(i, length_in, length_out, mode)) {
      if (transposed)
        std::swap(entry.row, entry.column);
      // A bilinear neighbour of weight zero would only make the band wider.
      if (entry.weight != 0)
        entries.push_back(entry);
    }
  std::vector<int64_t> first(length_out_, length_in_ - 1);
  for (const Entry &entry : entries)
    first[entry.row] = std::min(first[entry.row], entry.column);
  for (const Entry &entry : entries)
    taps_ = std::max(taps_, entry.column - first[entry.row] + 1);
  starts_.resize(length_out_);
  weights_.assign(length_out_ * taps_, 0.0f);
  for (int64_t i = 0; i < length_out_; ++i)
    starts_[i] = static_cast<int32_t>(std::min(first[i], length_in_ - taps_));
  for (const Entry &entry : entries)
    weights_[entry.row * taps_ + entry.column - starts_[entry.row]] =
        static_cast<float>(entry.weight);
}

} // namespace videoar
