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
};

// Throws std::invalid_argument for a negative size or a missing pointer.
void swiglu(const SwiGlu &call);

} // namespace videoar
