#include "qk_norm_rope.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "column_sums.h"
#include "parallel.h"
#include "scratch.h"

namespace {
constexpr int64_t kMaxWidth = 1024;
// Below this much work (about 0.2 ms on one core) waking other threads costs more than it saves.
constexpr int64_t kParallelElements = int64_t{1} << 19;
// Tokens that share one row of partial sums.
constexpr int64_t kBlockTokens = 32;
} // namespace

#define VIDEOAR_KERNEL "qk_norm_rope.inl"
#include "foreach_isa.h"

namespace videoar {
namespace {

void check_inputs(const QkNormRope &call) {
  VIDEOAR_CHECK(call.width > 0 && call.width <= kMaxWidth && call.width % 2 == 0, "width ",
                call.width, ", at most ", kMaxWidth);
  VIDEOAR_CHECK(call.q && call.k, "q ", call.q, ", k ", call.k);
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

void check_gradients(const QkNormRopeBackward &backward) {
  VIDEOAR_CHECK(backward.grad_q && backward.grad_k && backward.dq && backward.dk, "grad_q ",
                backward.grad_q, ", grad_k ", backward.grad_k, ", dq ", backward.dq, ", dk ",
                backward.dk);
  VIDEOAR_CHECK(backward.grad_q_strides[3] == 1 && backward.grad_k_strides[3] == 1,
                "channels of grad_q ", backward.grad_q_strides[3], " and grad_k ",
                backward.grad_k_strides[3], " elements apart");
  const bool norm = backward.call.q_weight;
  VIDEOAR_CHECK(!backward.grad_q_weight == !norm && !backward.grad_k_weight == !norm,
                "grad_q_weight ", backward.grad_q_weight, ", grad_k_weight ",
                backward.grad_k_weight, ", q_weight ", backward.call.q_weight);
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
  VIDEOAR_CHECK(call.q_out && call.k_out, "q_out ", call.q_out, ", k_out ", call.k_out);
  if (call.v)
    check_cache(call);
  with_type(call.dtype, [&](auto element) {
    with_type(call.cache_dtype, [&](auto cached) {
      VIDEOAR_DISPATCH(rotate_tokens<decltype(element), decltype(cached)>(call));
    });
  });
}

void qk_norm_rope_backward(const QkNormRopeBackward &backward) {
  const QkNormRope &call = backward.call;
  VIDEOAR_CHECK(call.batch >= 0 && call.heads >= 0 && call.groups >= 0 && call.length >= 0,
                "batch ", call.batch, ", heads ", call.heads, ", groups ", call.groups, ", length ",
                call.length);
  const int64_t tokens = call.batch * call.length;
  if (tokens) {
    check_inputs(call);
    check_gradients(backward);
  }
  const int64_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
  const int64_t sums_of_one = backward.grad_q_weight ? blocks * call.width : 0;
  const Scratch partial(2 * sums_of_one, false);
  float *q_sums = sums_of_one ? partial.mine() : nullptr;
  float *k_sums = sums_of_one ? q_sums + sums_of_one : nullptr;
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_DISPATCH(rotate_back_tokens<decltype(element)>(backward, q_sums, k_sums));
  });
  if (backward.grad_q_weight) {
    column_sums(q_sums, blocks, call.width, backward.grad_q_weight);
    column_sums(k_sums, blocks, call.width, backward.grad_k_weight);
  }
}

} // namespace videoar
