// Separable resampling of maps and its adjoint (kernels/resample.py).
#pragma once

#include <cstdint>

#include "bands.h"
#include "dtype.h"

namespace videoar {

// out[m] = A_rows x[m] A_columns^T, with A between the two grids by `mode`. With `adjoint` the
// matrices are the transposes of those that resample `to` to `from`. float32 inside.
struct Resample {
  const void *x; // [maps, from.height, from.width], strides below
  void *out;     // [maps, to.height, to.width], contiguous
  int64_t maps;
  Grid from;
  Grid to;
  int64_t stride_map;
  int64_t stride_row;
  int64_t stride_column;
  ResampleMode mode;
  bool adjoint;
  DType dtype;
};

// Throws std::invalid_argument for a size, mode, dtype or missing pointer that does not fit.
void resample(const Resample &call);

} // namespace videoar
