#include "rms_norm.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "column_sums.h"
#include "parallel.h"
#include "scratch.h"

namespace {
// Below this much work (about 0.2 ms on one core) waking other threads costs more than it saves.
constexpr int64_t kParallelElements = int64_t{1} << 20;
// Rows that share one row of partial sums: their bytes are then 2 % of those of bf16 tensors.
constexpr int64_t kBlockRows = 32;
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

void rms_norm_backward(const RmsNormBackward &call) {
  VIDEOAR_CHECK(call.rows >= 0 && call.width >= 0, "rows ", call.rows, ", width ", call.width);
  VIDEOAR_CHECK(
      call.width == 0 || !call.rows || (call.s && call.weight && call.grad_y && call.grad_x), "s ",
      call.s, ", weight ", call.weight, ", grad_y ", call.grad_y, ", grad_x ", call.grad_x);
  const int64_t blocks = (call.rows + kBlockRows - 1) / kBlockRows;
  const Scratch partial(call.grad_weight ? blocks * call.width : 0, false);
  float *sums = call.grad_weight ? partial.mine() : nullptr;
  with_type(call.dtype, [&](auto element) {
    with_type(call.weight_dtype, [&](auto weight) {
      VIDEOAR_DISPATCH(rms_norm_backward_rows<decltype(element), decltype(weight)>(call, sums));
    });
  });
  if (call.grad_weight)
    column_sums(sums, blocks, call.width, call.grad_weight);
}

} // namespace videoar
