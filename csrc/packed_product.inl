// A product of small matrices of 32-bit words, C = A B, for kernels compiled by foreach_isa.h: a
// word is a float, or, where the instruction set multiplies such pairs (kPairs), two neighbouring
// bf16. B is packed so that a vector holds one word of kLanes columns. Needs <algorithm>.

template <typename T> constexpr bool kPairs = kDotsPairs && sizeof(T) == 2;
// Accumulators of one product: kRows * kColumns of 32 registers, or 16 (AVX2 and less). Arm has no
// operand that is broadcast from memory, so a register for each row, too.
constexpr int kRows = VIDEOAR_ARM ? 5 : 6;
constexpr int kColumns = VIDEOAR_ISA >= VIDEOAR_AVX512 || VIDEOAR_ARM ? 4 : 2;

// Words live in arrays of floats and are moved as bits.
VIDEOAR_INLINE Words load_words(const float *x) { return as_words(load(x)); }
VIDEOAR_INLINE void store_words(float *out, Words x) { store(out, as_floats(x)); }

// c + a b by lane: one product, or two where words are pairs.
template <bool PAIRS> VIDEOAR_INLINE Floats multiply_add(const void *a, Words b, Floats c) {
  if constexpr (PAIRS) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
#if VIDEOAR_ISA == VIDEOAR_AVX512_BF16
    return _mm512_dpbf16_ps(c, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
#elif VIDEOAR_ISA == VIDEOAR_NEON_BF16
    const Words pairs = Words{} + static_cast<uint32_t>(pair);
    asm("bfdot %0.4s, %1.8h, %2.8h" : "+w"(c) : "w"(pairs), "w"(b));
    return c;
#endif
  }
  float factor;
  std::memcpy(&factor, a, sizeof factor);
  return fma(broadcast(factor), as_floats(b), c);
}

// C = (C * before + A B) * after.
struct Product {
  const float *a; // [rows, steps] words, stride_a between rows
  int64_t stride_a;
  const float *b; // [vectors, steps, kLanes]: packed columns
  int64_t steps, vectors;
  float *c; // [rows, vectors * kLanes], stride_c between rows
  int64_t stride_c, rows;
  const float *before; // [rows]; null: C starts at 0
  float after;

  int64_t blocks() const {
    return (rows + kRows - 1) / kRows * (vectors / kColumns + vectors % kColumns);
  }
};

// ROWS rows from m on, COLUMNS vectors of columns from n on.
template <bool PAIRS, int ROWS, int COLUMNS>
VIDEOAR_NOINLINE void multiply_block(const Product &product, int64_t m, int64_t n) {
  const int64_t steps = product.steps, stride_a = product.stride_a, stride_c = product.stride_c;
  const float *a = product.a + m * stride_a, *b = product.b + n * steps * kLanes;
  float *c = product.c + m * stride_c + n * kLanes;
  Floats sums[ROWS][COLUMNS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j)
      sums[i][j] =
          product.before ? load(c + i * stride_c + j * kLanes) * product.before[m + i] : Floats{};
  for (int64_t step = 0; step < steps; ++step) {
    Words words[COLUMNS];
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j)
      words[j] = load_words(b + (j * steps + step) * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; ++j)
        sums[i][j] = multiply_add<PAIRS>(a + i * stride_a + step, words[j], sums[i][j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j)
      store(c + i * stride_c + j * kLanes, sums[i][j] * product.after);
}

// Of at most ROWS rows.
template <bool PAIRS, int COLUMNS, int ROWS = kRows>
void multiply_rows(const Product &product, int64_t m, int64_t n) {
  if constexpr (ROWS > 1)
    if (product.rows - m < ROWS)
      return multiply_rows<PAIRS, COLUMNS, ROWS - 1>(product, m, n);
  multiply_block<PAIRS, ROWS, COLUMNS>(product, m, n);
}

// meanwhile() is called once a block.
template <bool PAIRS, typename Meanwhile>
void multiply(const Product &product, Meanwhile meanwhile) {
  int64_t n = 0;
  for (; n + kColumns <= product.vectors; n += kColumns)
    for (int64_t m = 0; m < product.rows; m += kRows) {
      meanwhile();
      multiply_rows<PAIRS, kColumns>(product, m, n);
    }
  for (; n < product.vectors; ++n)
    for (int64_t m = 0; m < product.rows; m += kRows) {
      meanwhile();
      multiply_rows<PAIRS, 1>(product, m, n);
    }
}

// Words i .. i + kLanes of a row of `width` channels; what lies behind its end is 0.
template <typename T> VIDEOAR_INLINE Words row_words(const T *row, int64_t i, int64_t width) {
  if constexpr (kPairs<T>) {
    const int64_t rest = width - 2 * i;
#if VIDEOAR_ISA == VIDEOAR_AVX512_BF16
    const uint32_t mask = rest >= 32 ? ~0u : (1u << rest) - 1;
    return (Words)_mm512_maskz_loadu_epi16(mask, row + 2 * i);
#else
    Words words{};
    if (rest >= 2 * kLanes)
      std::memcpy(&words, row + 2 * i, sizeof words);
    else
      std::memcpy(&words, row + 2 * i, sizeof(T) * rest);
    return words;
#endif
  }
  const int64_t rest = width - i;
  return as_words(load_n(row + i, rest < kLanes ? rest : kLanes));
}

// Words of a row, rounded up to whole vectors.
template <typename T> VIDEOAR_INLINE int64_t words_of(int64_t width) {
  const int64_t words = kPairs<T> ? (width + 1) / 2 : width;
  return (words + kLanes - 1) / kLanes * kLanes;
}

// Vectors of output channels; pairs of rows interleave into two vectors at a time.
template <typename T> VIDEOAR_INLINE int64_t vectors_of(int64_t width) {
  constexpr int64_t kLanesOfRow = kPairs<T> ? 2 * kLanes : kLanes;
  return (width + kLanesOfRow - 1) / kLanesOfRow * (kPairs<T> ? 2 : 1);
}

#if VIDEOAR_ISA >= VIDEOAR_AVX512
// x[i][j] <-> x[j][i]
VIDEOAR_INLINE void transpose(__m512i (&x)[16]) {
  __m512i y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
    x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
    x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
    x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i even0 = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    const __m512i odd0 = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xDD);
    const __m512i even1 = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    const __m512i odd1 = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xDD);
    y[i] = _mm512_shuffle_i32x4(even0, even1, 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
    y[i + 8] = _mm512_shuffle_i32x4(even0, even1, 0xDD);
    y[i + 12] = _mm512_shuffle_i32x4(odd0, odd1, 0xDD);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    x[i] = y[i];
}
#endif

// Words i .. i + kLanes of kLanes rows as columns: tile[word] holds one word of every row.
template <typename T>
VIDEOAR_INLINE void load_columns(const T *const (&row)[kLanes], int64_t i, int64_t width,
                                 Words (&tile)[kLanes]) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  __m512i rows[kLanes];
#pragma GCC unroll 16
  for (int key = 0; key < kLanes; ++key)
    rows[key] = (__m512i)row_words(row[key], i, width);
  transpose(rows);
#pragma GCC unroll 16
  for (int word = 0; word < kLanes; ++word)
    tile[word] = (Words)rows[word];
#else
  Floats rows[kLanes];
#pragma GCC unroll 16
  for (int key = 0; key < kLanes; ++key)
    rows[key] = as_floats(row_words(row[key], i, width));
  transpose(rows);
#pragma GCC unroll 16
  for (int word = 0; word < kLanes; ++word)
    tile[word] = as_words(rows[word]);
#endif
}

// Keys as columns: [groups of kLanes keys, words of D, kLanes]. The last group is filled up with
// the last key: columns that do not count.
template <typename T>
void pack_keys(const T *const *rows, int64_t keys, int64_t width, float *out) {
  const int64_t words = words_of<T>(width);
  for (int64_t first = 0; first < keys; first += kLanes, out += words * kLanes) {
    const T *row[kLanes];
    for (int64_t key = 0; key < kLanes; ++key)
      row[key] = rows[std::min(first + key, keys - 1)];
    for (int64_t i = 0; i < words; i += kLanes) {
      Words tile[kLanes];
      load_columns(row, i, width, tile);
#pragma GCC unroll 16
      for (int word = 0; word < kLanes; ++word)
        store_words(out + (i + word) * kLanes, tile[word]);
    }
  }
}

// Two rows of bf16 as one of pairs: low and high are the vectors 2 i and 2 i + 1 of all channels.
// On Arm they are in order; AVX-512 unpacks within 128 bits, so that low has the channels 32 i +
// {0-3, 8-11, 16-19, 24-27} and high the others (write_row puts them back).
VIDEOAR_INLINE void interleave(Words even, Words odd, Words &low, Words &high) {
#if VIDEOAR_ISA == VIDEOAR_AVX512_BF16
  low = (Words)_mm512_unpacklo_epi16((__m512i)even, (__m512i)odd);
  high = (Words)_mm512_unpackhi_epi16((__m512i)even, (__m512i)odd);
#elif VIDEOAR_ISA == VIDEOAR_NEON_BF16
  low = (Words)vzip1q_u16((uint16x8_t)even, (uint16x8_t)odd);
  high = (Words)vzip2q_u16((uint16x8_t)even, (uint16x8_t)odd);
#else
  low = even, high = odd; // never called
#endif
}

// Values: [vectors of channels, words of keys, kLanes]. Where words are pairs, a missing second key
// is 0.
template <typename T>
void pack_values(const T *const *rows, int64_t keys, int64_t width, float *out) {
  const int64_t vectors = vectors_of<T>(width);
  if constexpr (kPairs<T>) {
    const int64_t steps = (keys + 1) / 2;
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t n = 0; n < vectors; n += 2) {
        const Words even = row_words(rows[2 * step], n * kLanes / 2, width);
        const Words odd =
            2 * step + 1 < keys ? row_words(rows[2 * step + 1], n * kLanes / 2, width) : Words{};
        Words low, high;
        interleave(even, odd, low, high);
        store_words(out + (n * steps + step) * kLanes, low);
        store_words(out + ((n + 1) * steps + step) * kLanes, high);
      }
    }
    return;
  }
  for (int64_t key = 0; key < keys; ++key)
    for (int64_t n = 0; n < vectors; ++n)
      store_words(out + (n * keys + key) * kLanes, row_words(rows[key], n * kLanes, width));
}
