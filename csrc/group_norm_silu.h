// GroupNorm of each frame by itself, with SiLU behind it (kernels/group_norm_silu.py).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace videoar {

// y = silu((x - mean) / sqrt(var + eps) * weight + bias), mean and variance over the pixels of one
// frame and the channels of one group.
struct GroupNormSilu {
  const void *x;       // [frames, pixels, width], stride_x elements between frames
  const float *weight; // [width]
  const float *bias;   // [width]
  void *y;             // as x, with stride_y; may be x itself
  int64_t frames;
  int64_t pixels;
  int64_t width;
  int64_t groups; // a divisor of width
  int64_t stride_x;
  int64_t stride_y;
  float eps;
  DType dtype; // of x and y
};

// The sums are taken in an order that depends on the shape alone, not on the number of threads.
// Throws std::invalid_argument for a size that does not fit or a missing pointer.
void group_norm_silu(const GroupNormSilu &call);

} // namespace videoar
