#include "swiglu.h"

#include "check.h"
#include "parallel.h"

namespace {
constexpr int64_t kPiece = 4096;
// Below this much work (about 0.15 ms on one core with AVX2) waking other threads costs more than
// it saves.
constexpr int64_t kParallelElements = int64_t{1} << 17;
} // namespace

#define VIDEOAR_KERNEL "swiglu.inl"
#include "foreach_isa.h"

namespace videoar {

void swiglu(const SwiGlu &call) {
  VIDEOAR_CHECK(call.rows >= 0 && call.width >= 0, "rows ", call.rows, ", width ", call.width);
  if (call.rows == 0 || call.width == 0)
    return;
  VIDEOAR_CHECK(call.gate && call.up && call.y, "gate ", call.gate, ", up ", call.up, ", y ",
                call.y);
  with_type(call.dtype,
            [&](auto element) { VIDEOAR_DISPATCH(swiglu_rows<decltype(element)>(call)); });
}

void swiglu_backward(const SwiGluBackward &call) {
  VIDEOAR_CHECK(call.rows >= 0 && call.width >= 0, "rows ", call.rows, ", width ", call.width);
  if (call.rows == 0 || call.width == 0)
    return;
  VIDEOAR_CHECK(call.gate && call.up && call.grad && call.grad_gate && call.grad_up, "gate ",
                call.gate, ", up ", call.up, ", grad ", call.grad, ", grad_gate ", call.grad_gate,
                ", grad_up ", call.grad_up);
  with_type(call.dtype,
            [&](auto element) { VIDEOAR_DISPATCH(swiglu_backward_rows<decltype(element)>(call)); });
}

} // namespace videoar
