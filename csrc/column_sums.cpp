#include "column_sums.h"

#include <algorithm>

namespace videoar {
namespace {
constexpr int64_t kColumns = 64;
// Below this much work (about 0.2 ms on one core) waking other threads costs more than it saves.
constexpr int64_t kParallelElements = int64_t{1} << 19;
} // namespace

void column_sums(const float *partial, int64_t rows, int64_t width, float *out) {
  const int64_t pieces = (width + kColumns - 1) / kColumns;
  [[maybe_unused]] const bool parallel = rows * width >= kParallelElements;
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t first = piece * kColumns, count = std::min(kColumns, width - first);
    double totals[kColumns] = {};
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < count; ++c)
        totals[c] += static_cast<double>(partial[row * width + first + c]);
    for (int64_t c = 0; c < count; ++c)
      out[first + c] = static_cast<float>(totals[c]);
  }
}

} // namespace videoar
