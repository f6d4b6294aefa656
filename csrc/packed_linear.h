// The product of a linear layer with packed weights (runtime/packed.py).
#pragma once

#include <cstdint>

#include "dtype.h"

namespace videoar {

constexpr int64_t kPanel = 64; // output features that are packed together

// out = x W^T, summed in float32 in an order that depends on `in` alone.
struct PackedLinear {
  const void *x;      // [rows, in], contiguous
  const void *weight; // [out / kPanel, in, kPanel], or bf16 [out / kPanel, in / 2, kPanel, 2]
  void *y;            // [rows, out], contiguous
  int64_t rows;
  int64_t in;
  int64_t out;
  DType dtype;
};

// Throws std::invalid_argument for a negative size, an odd `in` in bf16, an `out` that is no
// multiple of kPanel, or a missing pointer.
void packed_linear(const PackedLinear &call);

} // namespace videoar
