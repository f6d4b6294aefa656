#include "packed_linear.h"

#include <algorithm>

#include "check.h"
#include "dtype.h"
#include "scratch.h"

namespace {
constexpr int64_t kChunkRows = 192; // whose sums of a panel, 48 KB, stay in a second-level cache
constexpr int64_t kSteps = 96;      // pairs of inputs whose weights, 24 KB, fit the first level
constexpr int64_t kFewRows = 8;     // up to these the memory is waited for, whatever is asked of it
// Below this many multiplications waking other threads costs more than it saves.
constexpr int64_t kParallelWork = int64_t{1} << 20;
} // namespace

#define VIDEOAR_KERNEL "packed_linear.inl"
#include "foreach_isa.h"

namespace videoar {

void packed_linear(const PackedLinear &call) {
  VIDEOAR_CHECK(call.rows >= 0 && call.in >= 0 && call.out >= 0, "rows ", call.rows, ", in ",
                call.in, ", out ", call.out);
  VIDEOAR_CHECK(call.in % 2 == 0 && call.out % kPanel == 0, "in ", call.in, ", out ", call.out);
  if (call.rows == 0 || call.out == 0)
    return;
  VIDEOAR_CHECK(call.x && call.weight && call.y, "x ", call.x, ", weight ", call.weight, ", y ",
                call.y);
  const bool parallel = call.rows * call.in * call.out >= kParallelWork;
  const Scratch sums(std::min(call.rows, kChunkRows) * kPanel, parallel);
  VIDEOAR_DISPATCH(linear_panels(call, parallel, sums));
}

} // namespace videoar
