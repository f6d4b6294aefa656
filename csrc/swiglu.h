// The gated activation of a SwiGLU layer (kernels/swiglu.py).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace videoar {

// y = silu(gate), rounded, times up.
struct SwiGlu {
  const void *gate; // [rows, width], stride_gate elements between rows
  const void *up;   // [rows, width], stride_up elements between rows
  void *y;          // [rows, width], contiguous
  int64_t rows;
  int64_t width;
  int64_t stride_gate;
  int64_t stride_up;
  DType dtype;
  bool awake = false; // whether other threads wait for work (parallel.h)
};

// Throws std::invalid_argument for a negative size or a missing pointer.
void swiglu(const SwiGlu &call);

// With p = sigmoid(gate): grad_gate = grad up p (1 + gate (1 - p)), grad_up = grad gate p.
struct SwiGluBackward {
  const void *gate; // [rows, width], stride_gate elements between rows
  const void *up;   // as gate, with stride_up
  const void *grad; // as gate, with stride_grad
  void *grad_gate;  // [rows, width], contiguous
  void *grad_up;    // [rows, width], contiguous
  int64_t rows;
  int64_t width;
  int64_t stride_gate;
  int64_t stride_up;
  int64_t stride_grad;
  DType dtype;
};

// Throws std::invalid_argument for a negative size or a missing pointer.
void swiglu_backward(const SwiGluBackward &call);

} // namespace videoar
