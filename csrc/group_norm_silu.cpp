#include "group_norm_silu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"

namespace {
// Below this much work (about 0.2 ms on one core) waking other threads costs more than it saves.
constexpr int64_t kParallelElements = int64_t{1} << 18;
// Elements of a chunk: 64 KB in bf16, which the second-level cache holds.
constexpr int64_t kChunkElements = int64_t{1} << 15;
} // namespace

#define VIDEOAR_KERNEL "group_norm_silu.inl"
#include "foreach_isa.h"

namespace videoar {

void group_norm_silu(const GroupNormSilu &call) {
  VIDEOAR_CHECK(call.frames >= 0 && call.pixels >= 0 && call.width >= 0, "frames ", call.frames,
                ", pixels ", call.pixels, ", width ", call.width);
  if (call.frames == 0 || call.pixels == 0 || call.width == 0)
    return;
  VIDEOAR_CHECK(call.groups >= 1 && call.width % call.groups == 0, "groups ", call.groups,
                ", width ", call.width);
  VIDEOAR_CHECK(call.x && call.weight && call.bias && call.y, "x ", call.x, ", weight ",
                call.weight, ", bias ", call.bias, ", y ", call.y);
  const int64_t chunk_pixels = std::max<int64_t>(kChunkElements / call.width, 1);
  const int64_t chunks = (call.pixels + chunk_pixels - 1) / chunk_pixels;
  // Kept by the thread, so that only its first calls allocate.
  thread_local std::vector<float> sums, affine;
  thread_local std::vector<double> totals;
  const auto values = static_cast<size_t>(call.frames * 2 * call.width);
  sums.resize(std::max(sums.size(), values * static_cast<size_t>(chunks)));
  affine.resize(std::max(affine.size(), values));
  totals.resize(std::max(totals.size(), values));
  float *const sums_data = sums.data(), *const affine_data = affine.data();
  double *const totals_data = totals.data();
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_DISPATCH(group_norm_silu_frames<decltype(element)>(
        call, chunk_pixels, chunks, sums_data, totals_data, affine_data));
  });
}

} // namespace videoar
