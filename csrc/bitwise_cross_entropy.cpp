#include "bitwise_cross_entropy.h"

#include <algorithm>
#include <vector>

#include "check.h"

namespace {
// Bits that are worked on at a time, in buffers on the stack.
constexpr int64_t kPiece = 256;
// Tokens that share one partial sum.
constexpr int64_t kBlockRows = 32;
// Below this much work (about 0.2 ms on one core) waking other threads costs more than it saves.
constexpr int64_t kParallelBits = int64_t{1} << 17;
} // namespace

#define VIDEOAR_KERNEL "bitwise_cross_entropy.inl"
#include "foreach_isa.h"

namespace videoar {
namespace {

void check(const BitwiseCrossEntropy &call, const void *out) {
  VIDEOAR_CHECK(call.rows >= 0 && call.num_bits >= 0, "rows ", call.rows, ", num_bits ",
                call.num_bits);
  VIDEOAR_CHECK(call.rows * call.num_bits == 0 || (call.x && call.bits && out), "x ", call.x,
                ", bits ", static_cast<const void *>(call.bits), ", out ", out);
}

} // namespace

void bitwise_cross_entropy(const BitwiseCrossEntropy &call, float *loss, double *total) {
  check(call, loss ? static_cast<void *>(loss) : total);
  const int64_t blocks = (call.rows + kBlockRows - 1) / kBlockRows;
  std::vector<double> sums(static_cast<size_t>(blocks));
  double *const sums_data = sums.data();
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_DISPATCH(losses<decltype(element)>(call, loss, sums_data));
  });
  if (!total)
    return;
  *total = 0;
  for (const double sum : sums)
    *total += sum;
}

void bitwise_cross_entropy_backward(const BitwiseCrossEntropy &call, const float *grad,
                                    int64_t stride_grad, float same, void *grad_x) {
  check(call, grad_x);
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_DISPATCH(gradients<decltype(element)>(call, grad, stride_grad, same,
                                                  static_cast<decltype(element) *>(grad_x)));
  });
}

} // namespace videoar
