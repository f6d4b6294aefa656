// Cross-entropy of every bit from two logits a bit (kernels/bitwise_cross_entropy.py).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace videoar {

// loss = log(1 + e^z) with z = logit_1 - logit_0 where the bit is 0, and the negative where it
// is 1.
struct BitwiseCrossEntropy {
  const void *x;       // [rows, 2 num_bits], stride_x elements between rows: logit_0, logit_1, ...
  const uint8_t *bits; // [rows, num_bits], stride_bits elements between rows
  const uint8_t *mask; // [rows], 0: the token does not count; null: all count
  int64_t rows;
  int64_t num_bits;
  int64_t stride_x;
  int64_t stride_bits;
  DType dtype; // of x
};

// The loss of every bit, [rows, num_bits] and contiguous, 0 where a token does not count, or, with
// `loss` null, only their sum in *total. The order of the sum depends on the shape alone. Throws
// std::invalid_argument for a negative size or a missing pointer.
void bitwise_cross_entropy(const BitwiseCrossEntropy &call, float *loss, double *total);

// grad_x [rows, 2 num_bits], contiguous and of the dtype of x: grad (p - bit) for logit_1, where p
// is the probability of a 1, and the negative for logit_0. `grad` is [rows, num_bits] with
// stride_grad elements between rows; null: `same` everywhere. Throws as above.
void bitwise_cross_entropy_backward(const BitwiseCrossEntropy &call, const float *grad,
                                    int64_t stride_grad, float same, void *grad_x);

} // namespace videoar
