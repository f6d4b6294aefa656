#include "resample.h"

#include <utility>

#include "check.h"
#include "scratch.h"

namespace {
// Below this many values in and out (about 0.2 ms on one core) waking other threads costs more
// than it saves.
constexpr int64_t kParallelValues = int64_t{1} << 20;
} // namespace

#define VIDEOAR_KERNEL "resample.inl"
#include "foreach_isa.h"

namespace videoar {
namespace {

BandTable table(int64_t from, int64_t to, const Resample &call) {
  return call.adjoint ? BandTable(to, from, call.mode, true) : BandTable(from, to, call.mode);
}

} // namespace

void resample(const Resample &call) {
  VIDEOAR_CHECK(call.maps >= 0, "maps ", call.maps);
  check_grid("from", call.from);
  check_grid("to", call.to);
  if (call.maps == 0)
    return;
  VIDEOAR_CHECK(call.x && call.out, "x ", call.x, ", out ", call.out);
  const BandTable rows = table(call.from.height, call.to.height, call);
  const BandTable columns = table(call.from.width, call.to.width, call);
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_DISPATCH(resample_maps<decltype(element)>(call, rows.view(), columns.view()));
  });
}

} // namespace videoar
