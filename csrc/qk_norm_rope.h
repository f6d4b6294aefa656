// QK normalisation, multi-scale temporal RoPE and the cache write (kernels/qk_norm_rope.py).
#pragma once

#include <array>
#include <cstdint>

#include "dtype.h"

namespace videoar {

// Elements between neighbours of each of four axes: row, head, token, channel (which must be 1).
using Strides = std::array<int64_t, 4>;

struct QkNormRope {
  int64_t batch, heads, groups, length, width; // B, H, G, L, D
  DType dtype;                                 // of q, k, v and the outputs

  const void *q, *k; // [B,H,L,D] and [B,G,L,D]
  Strides q_strides, k_strides;
  void *q_out, *k_out; // contiguous

  const int64_t *positions;                // [B,L,3] of (time, height, width)
  std::array<int64_t, 3> position_strides; // row (0: shared by the rows), token, axis
  std::array<int64_t, 3> sections;         // rotary pairs of each axis, sum D/2
  const float *frequencies;                // [D/2]

  const void *q_weight, *k_weight; // [D]; both null: no normalisation
  DType q_weight_dtype, k_weight_dtype;
  float eps;

  const void *v; // [B,G,L,D]; null: no cache write
  Strides v_strides;
  void *k_cache, *v_cache; // [B,G,capacity,D]
  Strides k_cache_strides, v_cache_strides;
  int64_t capacity;
  DType cache_dtype;
  const int64_t *starts; // [B], first row of each batch row; null: `start` for all
  int64_t start;
  bool awake = false; // whether other threads wait for work (parallel.h)
};

// Throws std::invalid_argument, before anything is written, for sizes, strides, sections, a missing
// pointer or a start that does not fit.
void qk_norm_rope(const QkNormRope &call);

// With n = x / rms(x) and g the gradient turned back:
// dx = (g weight - n mean(g weight n)) / rms(x), grad_weight = the sum over tokens and heads of
// g n; without a norm dx = g.
struct QkNormRopeBackward {
  QkNormRope call; // the forward one; its outputs and its cache are not read

  const void *grad_q, *grad_k; // [B,H,L,D] and [B,G,L,D], of call.dtype
  Strides grad_q_strides, grad_k_strides;
  void *dq, *dk;                        // [B,L,H,D] and [B,L,G,D], contiguous
  float *grad_q_weight, *grad_k_weight; // [D]; null without a norm
};

// The sums are taken in an order that depends on the shape alone. Throws std::invalid_argument as
// qk_norm_rope.
void qk_norm_rope_backward(const QkNormRopeBackward &backward);

} // namespace videoar
