// Multi-scale residual binary quantisation of latent frames (kernels/bsq_quantize.py).
#pragma once

#include <cstdint>
#include <vector>

#include "bands.h"
#include "dtype.h"

namespace videoar {

// B clips of t frames of d channels, K grids with N cells together. Contiguous but for x.
struct BsqQuantize {
  const void *x;        // [B, d, t, H, W], strides below
  const uint8_t *flips; // [B, t, N, d], or null: none
  uint8_t *targets;     // [B, t, N, d]
  uint8_t *bits;        // [B, t, N, d] = targets ^ flips
  void *reconstruction; // [B, t, d, H, W]
  void *inputs;         // [B, t, N, d] next-scale inputs, or null
  float *scale_inputs;  // [B, t, N, d] residuals whose signs are the targets, or null
  int64_t batch;
  int64_t frames;
  int64_t num_bits;
  float code; // 1 / sqrt(d)
  int64_t stride_batch;
  int64_t stride_bit;
  int64_t stride_frame;
  int64_t stride_row;
  int64_t stride_column;
  DType dtype; // of x, reconstruction and inputs
};

// `grids` are coarse to fine, the last is (H, W). Throws std::invalid_argument for a size, dtype or
// missing pointer that does not fit.
void bsq_quantize(const BsqQuantize &call, const std::vector<Grid> &grids);

} // namespace videoar
