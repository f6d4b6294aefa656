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
  bool awake = false; // whether other threads wait for work (parallel.h)
};

// Throws std::invalid_argument for a negative size or a missing pointer.
void rms_norm(const RmsNorm &call);

// With n = s / rms(s) and g = grad_y * weight:
// grad_x = (g - n mean(g n)) / rms(s) + grad_s, grad_weight = the sum over the rows of grad_y n.
struct RmsNormBackward {
  const void *s;      // [rows, width], stride_s elements between rows
  const void *weight; // [width], of weight_dtype
  const void *grad_y; // as s, with stride_y
  const void *grad_s; // as s, with stride_grad_s, or null: nothing came through s itself
  void *grad_x;       // [rows, width], contiguous
  float *grad_weight; // [width], or null: not wanted
  int64_t rows;
  int64_t width;
  int64_t stride_s;
  int64_t stride_y;
  int64_t stride_grad_s;
  float eps;
  DType dtype; // of s, grad_y, grad_s and grad_x
  DType weight_dtype;
};

// The sums over rows are taken in an order that depends on the shape alone. Throws
// std::invalid_argument for a negative size or a missing pointer.
void rms_norm_backward(const RmsNormBackward &call);

} // namespace videoar
