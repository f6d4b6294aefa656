// Attention of a chunk's queries to segments of the key-value cache (kernels/cached_attention.py).
#pragma once

#include <array>
#include <cstdint>

#include "dtype.h"

namespace videoar {

// Axes of q and out are row, head, query, channel; of the caches row, key head, cache row, channel.
// Channels must be contiguous.
struct CachedAttention {
  int64_t batch, heads, groups, length, width, capacity; // B, H, G, L, D
  int64_t segments_of_row;                               // S
  DType dtype;
  const void *q, *k_cache, *v_cache;
  void *out;
  std::array<int64_t, 4> q_strides, k_strides, v_strides, out_strides;
  const int32_t *segments; // [B,S,2] of (start, length), contiguous
  float scale;
  bool awake = false; // whether other threads wait for work (parallel.h)
};

// out = softmax(scale q k^T) v over the cache rows that the segments name; 0 without any. A query's
// result does not depend on the other queries, rows, heads or the number of threads. Throws
// std::invalid_argument for sizes, strides, a missing pointer or a segment that does not fit.
void cached_attention(const CachedAttention &call);

} // namespace videoar
