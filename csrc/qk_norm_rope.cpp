#include "qk_norm_rope.h"

#include <cmath>

#include "check.h"

namespace {
constexpr int64_t kMaxWidth = 1024;
// Below this much work (about 0.2 ms on one core) waking other threads costs more than it saves.
constexpr int64_t kParallelElements = int64_t{1} << 19;
} // namespace

#define VIDEOAR_KERNEL "qk_norm_rope.inl"
#include "foreach_isa.h"

namespace videoar {
namespace {

void check_inputs(const QkNormRope &call) {
  VIDEOAR_CHECK(call.width > 0 && call.width <= kMaxWidth && call.width % 2 == 0, "width ",
                call.width, ", at most ", kMaxWidth);
  VIDEOAR_CHECK(call.q && call.k && call.q_out && call.k_out, "q ", call.q, ", k ", call.k,
                ", q_out ", call.q_out, ", k_out ", call.k_out);
  VIDEOAR_CHECK(call.q_strides[3] == 1 && call.k_strides[3] == 1, "channels of q ",
                call.q_strides[3], " and k ", call.k_strides[3], " elements apart");
  VIDEOAR_CHECK(call.positions && call.frequencies, "positions ", call.positions, ", frequencies ",
                call.frequencies);
  const auto &[time, height, width] = call.sections;
  VIDEOAR_CHECK(time >= 0 && height >= 0 && width >= 0 && time + height + width == call.width / 2,
                "sections ", time, ", ", height, ", ", width, " of ", call.width / 2);
  VIDEOAR_CHECK(!call.q_weight == !call.k_weight, "q_weight ", call.q_weight, ", k_weight ",
                call.k_weight);
}

void check_cache(const QkNormRope &call) {
  VIDEOAR_CHECK(call.k_cache && call.v_cache, "k_cache ", call.k_cache, ", v_cache ", call.v_cache);
  VIDEOAR_CHECK(call.v_strides[3] == 1 && call.k_cache_strides[3] == 1 &&
                    call.v_cache_strides[3] == 1,
                "channels of v ", call.v_strides[3], ", k_cache ", call.k_cache_strides[3],
                " and v_cache ", call.v_cache_strides[3], " elements apart");
  for (int64_t row = 0; row < call.batch; ++row) {
    const int64_t start = call.starts ? call.starts[row] : call.start;
    VIDEOAR_CHECK(start >= 0 && start <= call.capacity - call.length, "start[", row, "] = ", start,
                  ", length ", call.length, ", capacity ", call.capacity);
  }
}

} // namespace

void qk_norm_rope(const QkNormRope &call) {
  VIDEOAR_CHECK(call.batch >= 0 && call.heads >= 0 && call.groups >= 0 && call.length >= 0,
                "batch ", call.batch, ", heads ", call.heads, ", groups ", call.groups, ", length ",
                call.length);
  if (call.batch == 0 || call.heads + call.groups == 0 || call.length == 0)
    return;
  check_inputs(call);
  if (call.v)
    check_cache(call);
  with_type(call.dtype, [&](auto element) {
    with_type(call.cache_dtype, [&](auto cached) {
      VIDEOAR_DISPATCH(rotate_tokens<decltype(element), decltype(cached)>(call));
    });
  });
}

} // namespace videoar
