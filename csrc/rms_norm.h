// Root-mean-square normalisation with the residual addition in front (kernels/rms_norm.py).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace videoar {

// y = round(s / sqrt(mean(s^2) + eps)) * weight with s = x + residual, row by row.
struct RmsNorm {
  const void *x;        // [rows, width], stride_x elements between rows
  const void *residual; // as x with stride_residual, or null: s is x and not stored
  const void *weight;   // [width], of weight_dtype
  void *y;              // [rows, width], contiguous
  void *s;              // as y; null without a residual
  int64_t rows;
  int64_t width;
  int64_t stride_x;
  int64_t stride_residual;
  float eps;
  DType dtype; // of x, residual, y and s
  DType weight_dtype;
};

// Throws std::invalid_argument for a negative size or a missing pointer.
void rms_norm(const RmsNorm &call);

} // namespace videoar
