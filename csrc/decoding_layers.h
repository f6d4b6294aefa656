// What one decoding step does between the matrix products of a transformer's layers, prepared once
// (runtime/cpu_layers.py).
#pragma once

#include <vector>

#include "cached_attention.h"
#include "packed_linear.h"
#include "qk_norm_rope.h"
#include "rms_norm.h"
#include "swiglu.h"

namespace videoar {

// The packed weights of one layer's products (packed_linear.h).
struct LayerWeights {
  const void *qkv;     // to (heads + 2 groups) head_dim
  const void *output;  // to width
  const void *gate_up; // to 2 mlp_width
  const void *down;    // to width
};

// Sizes, weights and buffers of all layers. Where a layer's products are not packed by us, the
// caller computes them and hands over the address of each result; what the next product reads is
// in a buffer of these.
struct DecodingModel {
  int64_t width, heads, groups, head_dim, mlp_width;
  DType dtype; // of weights, cache, activations
  float eps;
  std::array<int64_t, 3> sections;
  const float *frequencies;
  std::vector<const void *> norms;            // two a layer and the last one, [width]
  std::vector<const void *> q_norms, k_norms; // [head_dim], one a layer; empty: none
  std::vector<LayerWeights> weights;          // one a layer; empty: the caller multiplies
  int64_t capacity_rows;                      // tokens that the buffers hold, all rows together
  void *sum, *normed;                         // [capacity_rows, width]
  void *q;                                    // [capacity_rows, heads * head_dim]
  void *k;                                    // [capacity_rows, groups * head_dim]
  void *attended;                             // as q
  void *activated;                            // [capacity_rows, mlp_width]
  void *product;                              // [capacity_rows, outputs of the widest product]
};

// One chunk of tokens, and the cache that it is written to and read from.
struct DecodingChunk {
  int64_t batch, length;
  const int64_t *positions;                // [batch,length,3]
  std::array<int64_t, 3> position_strides; // row, token, axis
  const int64_t *starts;                   // [batch], first cache row of the chunk
  const int32_t *segments;                 // [batch,segments_of_row,2]
  int64_t segments_of_row;
  void *keys, *values; // of layer 0: [batch,groups,capacity,head_dim]
  Strides cache_strides;
  int64_t layer_stride; // elements from one layer's keys to the next one's
  int64_t capacity;
};

class DecodingLayers {
public:
  explicit DecodingLayers(DecodingModel model);

  // Start a chunk with its embedded tokens x [batch * length, width]: the first norm.
  void begin(const DecodingChunk &chunk, const void *x);
  // All layers, from begin() to the last norm.
  void run();

  // The same in parts, for products of the caller.
  // qkv [batch * length, (heads + 2 groups) head_dim] -> `attended`, and the cache is written.
  void attend(int64_t layer, const void *qkv);
  // Add a product to the sum and normalise it with norm `index` -> `normed`.
  void add_norm(int64_t index, const void *x);
  // gate and up [batch * length, 2 mlp_width] -> `activated`.
  void activate(const void *gate_up);

private:
  void multiply(const void *x, const void *weight, int64_t in, int64_t out);

  DecodingModel model_;
  DecodingChunk chunk_{};
};

} // namespace videoar
