// The product of a linear layer with packed bf16 weights (runtime/packed.py).
#pragma once

#include <cstdint>

namespace videoar {

constexpr int64_t kPanel = 64; // output features that are packed together

// out = x W^T, summed in float32 in an order that depends on `in` alone.
struct PackedLinear {
  const uint16_t *x;      // bf16 [rows, in], contiguous
  const uint16_t *weight; // bf16 [out / kPanel, in / 2, kPanel, 2]
  uint16_t *y;            // bf16 [rows, out], contiguous
  int64_t rows;
  int64_t in;
  int64_t out;
};

// Throws std::invalid_argument for a negative size, an odd `in`, an `out` that is no multiple of
// kPanel, or a missing pointer.
void packed_linear(const PackedLinear &call);

} // namespace videoar
