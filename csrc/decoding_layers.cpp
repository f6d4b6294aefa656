#include "decoding_layers.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "check.h"

namespace videoar {
namespace {

int64_t element_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

} // namespace

DecodingLayers::DecodingLayers(DecodingModel model) : model_(std::move(model)) {
  const DecodingModel &m = model_;
  VIDEOAR_CHECK(m.norms.size() % 2 == 1, "norms ", m.norms.size());
  const size_t layers = m.norms.size() / 2;
  VIDEOAR_CHECK(m.q_norms.size() == m.k_norms.size() &&
                    (m.q_norms.empty() || m.q_norms.size() == layers),
                "q_norms ", m.q_norms.size(), ", k_norms ", m.k_norms.size(), ", layers ", layers);
  for (const void *buffer : {m.sum, m.normed, m.q, m.k, m.attended, m.activated, m.product})
    VIDEOAR_CHECK(buffer, "a buffer is missing");
}

void DecodingLayers::begin(const DecodingChunk &chunk, const void *x) {
  const int64_t rows = chunk.batch * chunk.length;
  VIDEOAR_CHECK(chunk.batch >= 0 && chunk.length >= 0 && rows <= model_.capacity_rows, "batch ",
                chunk.batch, ", length ", chunk.length, ", capacity_rows ", model_.capacity_rows);
  VIDEOAR_CHECK(x || rows == 0, "x ", x);
  chunk_ = chunk;
  if (rows > 0)
    std::memcpy(model_.sum, x, rows * model_.width * element_size(model_.dtype));
  rms_norm({model_.sum, nullptr, model_.norms[0], model_.normed, nullptr, rows, model_.width,
            model_.width, 0, model_.eps, model_.dtype, model_.dtype});
}

void DecodingLayers::run() {
  const DecodingModel &m = model_;
  VIDEOAR_CHECK(2 * m.weights.size() + 1 == m.norms.size(), "weights ", m.weights.size(),
                ", norms ", m.norms.size());
  const int64_t attended = m.heads * m.head_dim, projected = attended + 2 * m.groups * m.head_dim;
  int64_t layer = 0;
  for (const LayerWeights &weights : m.weights) {
    multiply(m.normed, weights.qkv, m.width, projected);
    attend(layer, m.product);
    multiply(m.attended, weights.output, attended, m.width);
    add_norm(2 * layer + 1, m.product);
    multiply(m.normed, weights.gate_up, m.width, 2 * m.mlp_width);
    activate(m.product);
    multiply(m.activated, weights.down, m.mlp_width, m.width);
    add_norm(2 * layer + 2, m.product);
    ++layer;
  }
}

void DecodingLayers::multiply(const void *x, const void *weight, int64_t in, int64_t out) {
  packed_linear({x, weight, model_.product, chunk_.batch * chunk_.length, in, out, model_.dtype});
}

void DecodingLayers::attend(int64_t layer, const void *qkv) {
  const DecodingModel &m = model_;
  const DecodingChunk &c = chunk_;
  VIDEOAR_CHECK(layer >= 0 && 2 * layer + 1 < static_cast<int64_t>(m.norms.size()), "layer ",
                layer);
  const int64_t size = element_size(m.dtype), token = (m.heads + 2 * m.groups) * m.head_dim;
  const char *q = static_cast<const char *>(qkv), *k = q + m.heads * m.head_dim * size;
  const Strides projected{c.length * token, m.head_dim, token, 1};
  const int64_t offset = layer * c.layer_stride * size;
  char *keys = static_cast<char *>(c.keys) + offset, *values = static_cast<char *>(c.values);
  values += offset;

  QkNormRope rope{};
  rope.batch = c.batch, rope.heads = m.heads, rope.groups = m.groups, rope.length = c.length;
  rope.width = m.head_dim, rope.dtype = rope.cache_dtype = m.dtype;
  rope.q = q, rope.k = k, rope.v = k + m.groups * m.head_dim * size;
  rope.q_strides = rope.k_strides = rope.v_strides = projected;
  rope.q_out = m.q, rope.k_out = m.k;
  rope.positions = c.positions, rope.position_strides = c.position_strides;
  rope.sections = m.sections, rope.frequencies = m.frequencies, rope.eps = m.eps;
  if (!m.q_norms.empty())
    rope.q_weight = m.q_norms[layer], rope.k_weight = m.k_norms[layer];
  rope.q_weight_dtype = rope.k_weight_dtype = m.dtype;
  rope.k_cache = keys, rope.v_cache = values;
  rope.k_cache_strides = rope.v_cache_strides = c.cache_strides;
  rope.capacity = c.capacity, rope.starts = c.starts;
  rope.awake = true;
  qk_norm_rope(rope);

  CachedAttention attention{};
  attention.batch = c.batch, attention.heads = m.heads, attention.groups = m.groups;
  attention.length = c.length, attention.width = m.head_dim, attention.capacity = c.capacity;
  attention.segments_of_row = c.segments_of_row, attention.segments = c.segments;
  attention.dtype = m.dtype, attention.scale = 1.0 / std::sqrt(static_cast<double>(m.head_dim));
  attention.q = m.q, attention.k_cache = keys, attention.v_cache = values;
  attention.q_strides = {m.heads * c.length * m.head_dim, c.length * m.head_dim, m.head_dim, 1};
  attention.k_strides = attention.v_strides = c.cache_strides;
  attention.out = m.attended;
  attention.out_strides = {c.length * m.heads * m.head_dim, m.head_dim, m.heads * m.head_dim, 1};
  attention.awake = true;
  cached_attention(attention);
}

void DecodingLayers::add_norm(int64_t index, const void *x) {
  const DecodingModel &m = model_;
  VIDEOAR_CHECK(index >= 0 && index < static_cast<int64_t>(m.norms.size()), "index ", index);
  rms_norm({x, m.sum, m.norms[index], m.normed, m.sum, chunk_.batch * chunk_.length, m.width,
            m.width, m.width, m.eps, m.dtype, m.dtype, true});
}

void DecodingLayers::activate(const void *gate_up) {
  const DecodingModel &m = model_;
  const char *gate = static_cast<const char *>(gate_up);
  swiglu({gate, gate + m.mlp_width * element_size(m.dtype), m.activated,
          chunk_.batch * chunk_.length, m.mlp_width, 2 * m.mlp_width, 2 * m.mlp_width, m.dtype,
          true});
}

} // namespace videoar
