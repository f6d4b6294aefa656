// Softmax over blocks of keys and the rows it gives, for kernels compiled by foreach_isa.h. Needs
// attention_blocks.h, <algorithm> and <limits>.
#include "packed_product.inl"

// Where the channels of a token begin.
template <typename T>
VIDEOAR_INLINE T *token_row(const void *x, const Axes &strides, int64_t row, int64_t head,
                            int64_t token) {
  const T *first = static_cast<const T *>(x);
  return const_cast<T *>(first + row * strides[0] + head * strides[1] + token * strides[2]);
}

// Rows of T as rows of words.
template <typename T>
void copy_words(const T *rows, int64_t stride, int64_t count, int64_t width, float *out) {
  const int64_t words = words_of<T>(width);
  for (int64_t m = 0; m < count; ++m)
    for (int64_t i = 0; i < words; i += kLanes)
      store_words(out + m * words + i, row_words(rows + m * stride, i, width));
}

// 2^x for x <= 0, to 3e-6: far below the rounding of a weight to bf16.
VIDEOAR_INLINE Floats exp2_short(Floats x) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  const Floats y = _mm512_max_ps(_mm512_set1_ps(-150.0f), x); // NaN stays NaN
  const Floats n = _mm512_roundscale_ps(y, 8);
  const Floats r = y - n;
#else
  const Floats magic = broadcast(12582912.0f); // as in exp
  const Floats y = x < -126.0f ? broadcast(-126.0f) : x;
  const Floats shifted = y + magic;
  const Floats r = y - (shifted - magic);
#endif
  Floats p = fma(broadcast(9.58285e-3f), r, broadcast(5.590643e-2f));
  p = fma(p, r, broadcast(2.4024099e-1f));
  p = fma(p, r, broadcast(6.9312419e-1f));
  p = fma(p, r, broadcast(1.0f));
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  return _mm512_scalef_ps(p, n);
#else
  const Floats power = as_floats((as_words(shifted) - as_words(magic) + 127u) << 23);
  return x < -126.0f ? Floats{} : p * power;
#endif
}

// Scores are in units of log(2) where words are pairs, so that the shorter function gives weights.
template <typename T> constexpr float kScoreUnit = kPairs<T> ? 1.44269504f : 1.0f;

template <typename T> VIDEOAR_INLINE Floats weight_of(Floats x) {
  return kPairs<T> ? exp2_short(x) : exp(x);
}

// Scores of a block of keys to weights, in place: weight_of(score - the query's largest so far), as
// bf16 where words are pairs. Updates largest and total of every query; factor is that of what was
// summed before. In three passes, so that no query waits for the chain of another.
template <typename T> void softmax_block(int64_t keys, int64_t count, AttentionScratch &scratch) {
  const int64_t padded = (keys + kLanes - 1) / kLanes * kLanes;
  for (int64_t m = 0; m < count; ++m) {
    float *scores = scratch.scores + m * kBlockKeys;
    for (int64_t key = keys; key < padded; ++key)
      scores[key] = -std::numeric_limits<float>::infinity();
    Floats best = load(scores);
    for (int64_t key = kLanes; key < padded; key += kLanes)
      best = max(load(scores + key), best);
    scratch.factor[m] = std::max(scratch.largest[m], largest(best));
  }
  for_vectors(count, [&](int64_t m, int64_t n) {
    const Floats now = load_n(scratch.factor + m, n);
    const Floats factor = weight_of<T>(load_n(scratch.largest + m, n) - now);
    store_n(scratch.largest + m, now, n);
    store_n(scratch.factor + m, factor, n);
  });
  for (int64_t m = 0; m < count; ++m) {
    float *scores = scratch.scores + m * kBlockKeys;
    Floats sums{};
    for (int64_t key = 0; key < padded; key += kLanes) {
      const Floats weight = weight_of<T>(load(scores + key) - scratch.largest[m]);
      sums = sums + weight;
      if constexpr (kPairs<T>)
        store(reinterpret_cast<bf16 *>(scores) + key, weight); // behind what was read
      else
        store(scores + key, weight);
    }
    scratch.total[m] = scratch.total[m] * scratch.factor[m] + sum(sums);
  }
}

// One query's channels, divided by its sum and put back in order.
template <typename T>
VIDEOAR_INLINE void write_row(const float *sums, float total, int64_t width, T *out) {
#if VIDEOAR_ISA == VIDEOAR_AVX512_BF16
  if constexpr (kPairs<T>) {
    const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i back = _mm512_add_epi32(front, _mm512_set1_epi32(8));
    for (int64_t i = 0; i < width; i += 2 * kLanes) {
      const Floats low = load(sums + i), high = load(sums + i + kLanes);
      const Floats first = _mm512_permutex2var_ps(low, front, high);
      const Floats second = _mm512_permutex2var_ps(low, back, high);
      const int64_t rest = width - i;
      store_n(out + i, first / total, rest < kLanes ? rest : kLanes);
      if (rest > kLanes)
        store_n(out + i + kLanes, second / total, rest < 2 * kLanes ? rest - kLanes : kLanes);
    }
    return;
  }
#endif
  for_vectors(width,
              [&](int64_t i, int64_t count) { store_n(out + i, load(sums + i) / total, count); });
}
