// Attention over a training sequence, forward and backward (kernels/chunk_attention.py).
#pragma once

#include "attention_blocks.h"
#include "chunk_blocks.h"
#include "dtype.h"

namespace videoar {

// Axes of q, out and grad_out are row, head, token, channel; of k and v row, key head, token,
// channel. Channels must be contiguous.
struct ChunkAttention {
  ChunkSequence sequence;
  int64_t heads, groups, width; // H, G, D
  DType dtype;
  const void *q, *k, *v;
  Axes q_strides, k_strides, v_strides;
  void *out;
  Axes out_strides;
  float *lse; // [B,H,L], contiguous: log of the softmax denominators, -inf where nothing is seen
  float scale;
};

struct ChunkAttentionBackward {
  ChunkAttention call; // out and lse are read
  const void *grad_out;
  Axes grad_out_strides;
  const float *grad_lse; // [B,H,L], contiguous; null: 0
  void *grad_q, *grad_k, *grad_v;
  Axes grad_q_strides, grad_k_strides, grad_v_strides;
};

// out = softmax(scale q k^T) v over the keys that each token sees; 0 for one that sees nothing.
// Keys that no query of a block sees are not read. A row's result does not depend on the other rows
// or the number of threads. Throws std::invalid_argument for sizes, strides or tables that do not
// fit.
void chunk_attention(const ChunkAttention &call);

// Gradients of q, k and v; scores are computed again. The same promise.
void chunk_attention_backward(const ChunkAttentionBackward &call);

// Throws std::invalid_argument; shared by the two.
void check_chunk_attention(const ChunkAttention &call);

// Whether the call is worth waking threads for.
bool worth_threads(const ChunkAttention &call);

} // namespace videoar
