// The end of one decoding step: sampling, frame accumulator, next input (kernels/next_scale.py).
#pragma once

#include <cstdint>

#include "bands.h"
#include "dtype.h"

namespace videoar {

// R rows, n = grid.cells() tokens, d = num_bits. Contiguous unless strides are named (in elements).
struct NextScale {
  const void *logits;        // [R, n, 2d] of `dtype`
  const void *uncond;        // as logits, or null: no guidance
  const float *accumulator;  // [R, d, full]
  const float *noise;        // [R, n, d] uniforms, or null: those of seeds
  const int64_t *seeds;      // [R]; null with noise, or if every temperature is 0
  const int64_t *frames;     // [R], or null: `frame` for all
  const float *guidances;    // [R], or null: `guidance` for all
  const float *temperatures; // [R], or null: `temperature` for all
  uint8_t *bits;             // [R, n, d], rows at any distance
  float *sum;                // [R, d, full]; may be `accumulator`
  float *inputs;             // [R, next.cells(), d]
  uint8_t *failed;           // [R], set to 1 where a logit is not finite, else left; or null
  int64_t rows;
  int64_t num_bits;
  int64_t scale;
  int64_t frame;
  float guidance;
  float temperature;
  float code; // 1 / sqrt(d)
  Grid grid;
  Grid full;
  Grid next;
  int64_t logits_stride_row;
  int64_t logits_stride_token;
  int64_t uncond_stride_row;
  int64_t uncond_stride_token;
  int64_t bits_stride_row;
  DType dtype;
};

// Throws std::invalid_argument for a size, counter, dtype or missing pointer that does not fit.
void next_scale(const NextScale &call);

} // namespace videoar
