// Kernel of qk_norm_rope.cpp, compiled by foreach_isa.h.

// Cosines and sines of a token's D/2 angles. The angle is a float32 product as in the reference;
// quarter turns are taken off in double, which is exact enough for any position, and the rest goes
// through Cephes' polynomials for |r| <= pi/4.
inline void rope_table(const int64_t *position, int64_t stride, const QkNormRope &call, float *cos,
                       float *sin) {
  int64_t i = 0;
  for (int64_t axis = 0; axis < 3; ++axis) {
    const float coordinate = static_cast<float>(position[axis * stride]);
    const int64_t end = i + call.sections[axis];
#pragma omp simd
    for (int64_t pair = i; pair < end; ++pair) {
      const double angle = coordinate * call.frequencies[pair];
      const double magic = 6755399441055744.0; // 1.5 * 2^52: adding it rounds to an integer
      const double quarters = (angle * 0.6366197723675814 + magic) - magic;
      const float r = static_cast<float>(angle - quarters * 1.5707963267948966);
      const int32_t quadrant = static_cast<int32_t>(quarters);
      const float z = r * r;
      const float s =
          ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
      const float c =
          ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z *
              z -
          0.5f * z + 1.0f;
      const float across = quadrant & 1 ? s : c, up = quadrant & 1 ? c : s;
      cos[pair] = (quadrant + 1) & 2 ? -across : across;
      sin[pair] = quadrant & 2 ? -up : up;
    }
    i = end;
  }
}

// 1 / sqrt(mean(x^2) + eps) of a head's channels; two sums, so that one need not wait for the
// other.
template <typename T> VIDEOAR_INLINE float inverse_rms(const T *x, int64_t width, float eps) {
  const int64_t half = width / 2;
  Floats front{}, back{};
  for_vectors(half, [&](int64_t i, int64_t count) {
    const Floats first = load_n(x + i, count), second = load_n(x + half + i, count);
    front = fma(first, first, front);
    back = fma(second, second, back);
  });
  return 1.0f / std::sqrt(sum(front + back) / static_cast<float>(width) + eps);
}

// One head of one token: out, and the same rounded to C in `cache` where that is not null.
template <typename T, typename C>
VIDEOAR_INLINE void rotate_head(const T *x, const float *weight, const float *cos, const float *sin,
                                int64_t width, float eps, T *out, C *cache) {
  const int64_t half = width / 2;
  const Floats scale = broadcast(weight ? inverse_rms(x, width, eps) : 1.0f);
  for_vectors(half, [&](int64_t i, int64_t count) {
    Floats first = load_n(x + i, count), second = load_n(x + half + i, count);
    if (weight) {
      first = first * scale * load_n(weight + i, count);
      second = second * scale * load_n(weight + half + i, count);
    }
    const Floats c = load_n(cos + i, count), s = load_n(sin + i, count);
    const Floats low = first * c - second * s, high = second * c + first * s;
    store_n(out + i, low, count);
    store_n(out + half + i, high, count);
    if (cache) {
      store_n(cache + i, round_to<T>(low), count);
      store_n(cache + half + i, round_to<T>(high), count);
    }
  });
}

VIDEOAR_INLINE int64_t offset(const Strides &strides, int64_t row, int64_t head, int64_t token) {
  return row * strides[0] + head * strides[1] + token * strides[2];
}

// All heads of one token of one row.
template <typename T, typename C>
void rotate_token(const QkNormRope &call, const float *q_weight, const float *k_weight, int64_t row,
                  int64_t token) {
  float cos[kMaxWidth / 2], sin[kMaxWidth / 2];
  rope_table(call.positions + row * call.position_strides[0] + token * call.position_strides[1],
             call.position_strides[2], call, cos, sin);
  const int64_t width = call.width;
  for (int64_t head = 0; head < call.heads; ++head) {
    T *out =
        static_cast<T *>(call.q_out) + ((row * call.heads + head) * call.length + token) * width;
    rotate_head<T, C>(static_cast<const T *>(call.q) + offset(call.q_strides, row, head, token),
                      q_weight, cos, sin, width, call.eps, out, nullptr);
  }
  const int64_t slot = (call.starts ? call.starts[row] : call.start) + token;
  for (int64_t head = 0; head < call.groups; ++head) {
    T *out =
        static_cast<T *>(call.k_out) + ((row * call.groups + head) * call.length + token) * width;
    C *cached = nullptr;
    if (call.v) {
      cached = static_cast<C *>(call.k_cache) + offset(call.k_cache_strides, row, head, slot);
      C *value = static_cast<C *>(call.v_cache) + offset(call.v_cache_strides, row, head, slot);
      const T *v = static_cast<const T *>(call.v) + offset(call.v_strides, row, head, token);
      for_vectors(width, [&](int64_t i, int64_t count) {
        store_n(value + i, load_n(v + i, count), count);
      });
    }
    rotate_head(static_cast<const T *>(call.k) + offset(call.k_strides, row, head, token), k_weight,
                cos, sin, width, call.eps, out, cached);
  }
}

// The weights of a norm as floats; null stays null.
inline const float *widen_weight(const void *weight, DType dtype, int64_t width, float *out) {
  if (!weight || dtype == DType::float32)
    return static_cast<const float *>(weight);
  for_vectors(width, [&](int64_t i, int64_t count) {
    store_n(out + i, load_n(static_cast<const bf16 *>(weight) + i, count), count);
  });
  return out;
}

template <typename T, typename C> void rotate_tokens(const QkNormRope &call) {
  float q_buffer[kMaxWidth], k_buffer[kMaxWidth];
  const float *q_weight = widen_weight(call.q_weight, call.q_weight_dtype, call.width, q_buffer);
  const float *k_weight = widen_weight(call.k_weight, call.k_weight_dtype, call.width, k_buffer);
  const int64_t elements = call.batch * (call.heads + 2 * call.groups) * call.length * call.width;
  const bool parallel = shares(elements, kParallelElements, call.awake);
#pragma omp parallel for collapse(2) schedule(static) if (parallel)
  for (int64_t row = 0; row < call.batch; ++row)
    for (int64_t token = 0; token < call.length; ++token)
      rotate_token<T, C>(call, q_weight, k_weight, row, token);
}

// The two halves of a gradient turned back: what the pairs had before the rotation.
struct Pair {
  Floats first, second;
};

template <typename T>
VIDEOAR_INLINE Pair turned_back(const T *grad, const float *cos, const float *sin, int64_t half,
                                int64_t i, int64_t count) {
  const Floats first = load_n(grad + i, count), second = load_n(grad + half + i, count);
  const Floats c = load_n(cos + i, count), s = load_n(sin + i, count);
  return {first * c + second * s, second * c - first * s};
}

// The gradient of one head of one token; `partial` gains what the weight gets from it.
template <typename T>
VIDEOAR_INLINE void rotate_back_head(const T *x, const T *grad, const float *weight,
                                     const float *cos, const float *sin, int64_t width, float eps,
                                     T *dx, float *partial) {
  const int64_t half = width / 2;
  if (!weight) {
    for_vectors(half, [&](int64_t i, int64_t count) {
      const Pair g = turned_back(grad, cos, sin, half, i, count);
      store_n(dx + i, g.first, count);
      store_n(dx + half + i, g.second, count);
    });
    return;
  }
  const Floats scale = broadcast(inverse_rms(x, width, eps));
  Floats front{}, back{};
  for_vectors(half, [&](int64_t i, int64_t count) {
    const Pair g = turned_back(grad, cos, sin, half, i, count);
    front = fma(g.first * load_n(weight + i, count), load_n(x + i, count), front);
    back = fma(g.second * load_n(weight + half + i, count), load_n(x + half + i, count), back);
  });
  const Floats mean = broadcast(sum((front + back) * scale) / static_cast<float>(width));
  for_vectors(half, [&](int64_t i, int64_t count) {
    const Pair g = turned_back(grad, cos, sin, half, i, count);
    const auto finish = [&](int64_t at, Floats gradient) {
      const Floats n = load_n(x + at, count) * scale;
      store_n(partial + at, fma(gradient, n, load_n(partial + at, count)), count);
      store_n(dx + at, (gradient * load_n(weight + at, count) - n * mean) * scale, count);
    };
    finish(i, g.first);
    finish(half + i, g.second);
  });
}

// All heads of one token of one row.
template <typename T>
void rotate_back_token(const QkNormRopeBackward &backward, const float *q_weight,
                       const float *k_weight, int64_t row, int64_t token, float *q_sums,
                       float *k_sums) {
  const QkNormRope &call = backward.call;
  float cos[kMaxWidth / 2], sin[kMaxWidth / 2];
  rope_table(call.positions + row * call.position_strides[0] + token * call.position_strides[1],
             call.position_strides[2], call, cos, sin);
  const int64_t width = call.width, place = row * call.length + token;
  const auto turn = [&](const void *x, const Strides &x_strides, const void *grad,
                        const Strides &grad_strides, const float *weight, int64_t heads, void *dx,
                        float *sums) {
    for (int64_t head = 0; head < heads; ++head)
      rotate_back_head(static_cast<const T *>(x) + offset(x_strides, row, head, token),
                       static_cast<const T *>(grad) + offset(grad_strides, row, head, token),
                       weight, cos, sin, width, call.eps,
                       static_cast<T *>(dx) + (place * heads + head) * width, sums);
  };
  turn(call.q, call.q_strides, backward.grad_q, backward.grad_q_strides, q_weight, call.heads,
       backward.dq, q_sums);
  turn(call.k, call.k_strides, backward.grad_k, backward.grad_k_strides, k_weight, call.groups,
       backward.dk, k_sums);
}

// The sums hold a row for every kBlockTokens tokens, or are null.
template <typename T>
void rotate_back_tokens(const QkNormRopeBackward &backward, float *q_sums, float *k_sums) {
  const QkNormRope &call = backward.call;
  float q_buffer[kMaxWidth], k_buffer[kMaxWidth];
  const float *q_weight = widen_weight(call.q_weight, call.q_weight_dtype, call.width, q_buffer);
  const float *k_weight = widen_weight(call.k_weight, call.k_weight_dtype, call.width, k_buffer);
  const int64_t width = call.width, tokens = call.batch * call.length;
  const int64_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
  const bool parallel = tokens * (call.heads + call.groups) * width >= kParallelElements;
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t block = 0; block < blocks; ++block) {
    float *q_mine = q_sums ? q_sums + block * width : nullptr;
    float *k_mine = k_sums ? k_sums + block * width : nullptr;
    for (int64_t i = 0; q_sums && i < width; ++i)
      q_mine[i] = k_mine[i] = 0;
    const int64_t first = block * kBlockTokens, last = std::min(first + kBlockTokens, tokens);
    for (int64_t place = first; place < last; ++place)
      rotate_back_token<T>(backward, q_weight, k_weight, place / call.length, place % call.length,
                           q_mine, k_mine);
  }
}
