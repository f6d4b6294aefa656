#include "rms_norm.h"

#include <cmath>

#include "check.h"

namespace {
// Below this much work (about 0.2 ms on one core) waking other threads costs more than it saves.
constexpr int64_t kParallelElements = int64_t{1} << 20;
} // namespace

#define VIDEOAR_KERNEL "rms_norm.inl"
#include "foreach_isa.h"

namespace videoar {

void rms_norm(const RmsNorm &call) {
  VIDEOAR_CHECK(call.rows >= 0 && call.width >= 0, "rows ", call.rows, ", width ", call.width);
  if (call.rows == 0 || call.width == 0)
    return;
  VIDEOAR_CHECK(call.x && call.weight && call.y, "x ", call.x, ", weight ", call.weight, ", y ",
                call.y);
  VIDEOAR_CHECK(!call.residual == !call.s, "residual ", call.residual, ", s ", call.s);
  with_type(call.dtype, [&](auto element) {
    with_type(call.weight_dtype, [&](auto weight) {
      VIDEOAR_DISPATCH(rms_norm_rows<decltype(element), decltype(weight)>(call));
    });
  });
}

} // namespace videoar
