#include "packed_linear.h"

#include <algorithm>

#include "check.h"
#include "scratch.h"

namespace {
constexpr int64_t kChunkRows = 192; // whose sums of a panel, 48 KB, stay in a second-level cache
constexpr int64_t kSteps = 64;      // words of each output: two blocks, 32 KB, fit the first level
// Below this many multiplications waking other threads costs more than it saves.
constexpr int64_t kParallelWork = int64_t{1} << 20;

// Rows of a part: with fewer, reading the weights once more costs more than idle threads.
constexpr int64_t kPartRows = 24;

// Into how many parts rows are divided, so that panels and parts together come out even on all
// threads: the fewest that leave at most a tenth of them idle, or else the most even.
int64_t row_parts(int64_t panels, int64_t rows) {
  const int64_t threads = videoar::thread_count();
  int64_t best = 1;
  double best_share = 0;
  for (int64_t parts = 1; parts == 1 || rows / parts >= kPartRows; ++parts) {
    const int64_t work = panels * parts, turns = (work + threads - 1) / threads;
    const double share = static_cast<double>(work) / static_cast<double>(turns * threads);
    if (share > best_share)
      best = parts, best_share = share;
    if (share >= 0.9)
      break;
  }
  return best;
}

// Inputs whose weights lie side by side: a word is a float, or two bf16.
template <typename T> constexpr int kInputsOfWord = sizeof(float) / sizeof(T);
} // namespace

#define VIDEOAR_KERNEL "packed_linear.inl"
#include "foreach_isa.h"

namespace videoar {

void packed_linear(const PackedLinear &call) {
  VIDEOAR_CHECK(call.rows >= 0 && call.in >= 0 && call.out >= 0, "rows ", call.rows, ", in ",
                call.in, ", out ", call.out);
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_CHECK(call.in % kInputsOfWord<decltype(element)> == 0 && call.out % kPanel == 0, "in ",
                  call.in, ", out ", call.out);
  });
  if (call.rows == 0 || call.out == 0)
    return;
  VIDEOAR_CHECK(call.x && call.weight && call.y, "x ", call.x, ", weight ", call.weight, ", y ",
                call.y);
  const bool parallel = call.rows * call.in * call.out >= kParallelWork;
  const Scratch sums(std::min(call.rows, kChunkRows) * kPanel, parallel);
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_DISPATCH(linear_panels<decltype(element)>(call, parallel, sums));
  });
}

} // namespace videoar
