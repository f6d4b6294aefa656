// Vectors of floats, one register of the instruction set wide. Written in the vector extension of
// GCC and clang (operators work by lane), with intrinsics where it has no word for something;
// another compiler gets vectors of one lane. Included by foreach_isa.h, once per instruction set.

#if defined(__GNUC__)
#define VIDEOAR_INLINE inline __attribute__((always_inline))
// What fills the registers keeps them to itself.
#define VIDEOAR_NOINLINE __attribute__((noinline))
constexpr int kLanes = VIDEOAR_ISA >= VIDEOAR_AVX512 ? 16 : VIDEOAR_ISA == VIDEOAR_AVX2 ? 8 : 4;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

// GCC 12 compiles __builtin_convertvector between these into several instructions.
VIDEOAR_INLINE Words widen(Halves x) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  return (Words)_mm512_cvtepu16_epi32((__m256i)x);
#elif VIDEOAR_ISA == VIDEOAR_AVX2
  return (Words)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, Words);
#endif
}

VIDEOAR_INLINE Halves narrow(Words x) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  return (Halves)_mm512_cvtepi32_epi16((__m512i)x);
#elif VIDEOAR_ISA == VIDEOAR_AVX2
  const __m256i low = (__m256i)(x & 0xFFFFu);
  return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
#else
  return __builtin_convertvector(x, Halves);
#endif
}
#else
#define VIDEOAR_INLINE inline
#define VIDEOAR_NOINLINE
constexpr int kLanes = 1;
typedef float Floats;
typedef uint32_t Words;
typedef uint16_t Halves;

VIDEOAR_INLINE Words widen(Halves x) { return x; }
VIDEOAR_INLINE Halves narrow(Words x) { return static_cast<Halves>(x); }
#endif

// Whether products of bf16 pairs are one instruction.
constexpr bool kDotsPairs = VIDEOAR_ISA == VIDEOAR_AVX512_BF16 || VIDEOAR_ISA == VIDEOAR_NEON_BF16;

VIDEOAR_INLINE Words as_words(Floats x) {
  Words words;
  std::memcpy(&words, &x, sizeof x);
  return words;
}

VIDEOAR_INLINE Floats as_floats(Words x) {
  Floats floats;
  std::memcpy(&floats, &x, sizeof x);
  return floats;
}

VIDEOAR_INLINE Floats broadcast(float x) { return x - Floats{}; }

// a * b + c, with one rounding where the instruction set has FMA. Without this call nothing is
// fused (-ffp-contract=off), so that a formula means the same on every processor.
VIDEOAR_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  return _mm512_fmadd_ps(a, b, c);
#elif VIDEOAR_ISA == VIDEOAR_AVX2
  return _mm256_fmadd_ps(a, b, c);
#elif VIDEOAR_ARM
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// As the instruction: b where a lane is NaN.
VIDEOAR_INLINE Floats max(Floats a, Floats b) { return a > b ? a : b; }
VIDEOAR_INLINE Floats min(Floats a, Floats b) { return a < b ? a : b; }

// A hint: *address will be read.
VIDEOAR_INLINE void prefetch(const void *address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#else
  (void)address;
#endif
}

// Combines the two halves of x, then the halves of the result, and so on.
template <int size, typename Combine> VIDEOAR_INLINE float fold(const float *x, Combine combine) {
  if constexpr (size == 1) {
    return x[0];
  } else {
    float half[size / 2];
    for (int i = 0; i < size / 2; ++i)
      half[i] = combine(x[i], x[i + size / 2]);
    return fold<size / 2>(half, combine);
  }
}

VIDEOAR_INLINE float sum(Floats x) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  return _mm512_reduce_add_ps(x);
#else
  float lanes[kLanes];
  std::memcpy(lanes, &x, sizeof x);
  return fold<kLanes>(lanes, [](float a, float b) { return a + b; });
#endif
}

VIDEOAR_INLINE float largest(Floats x) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  return _mm512_reduce_max_ps(x);
#else
  float lanes[kLanes];
  std::memcpy(lanes, &x, sizeof x);
  return fold<kLanes>(lanes, [](float a, float b) { return a > b ? a : b; });
#endif
}

// bf16 bits of each lane, rounded to nearest even; a NaN stays one.
VIDEOAR_INLINE Words bf16_words(Floats x) {
  const Words bits = as_words(x);
  const Words rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return x == x ? rounded : (bits >> 16 | 0x40u);
}

// The same; the instruction of x86 takes denormal numbers for 0.
VIDEOAR_INLINE Halves to_bf16(Floats x) {
#if VIDEOAR_ISA == VIDEOAR_AVX512_BF16
  return (Halves)_mm512_cvtneps_pbh(x);
#elif VIDEOAR_ISA == VIDEOAR_NEON_BF16
  Halves out; // clang before 16 has no intrinsics for a target that is chosen here
  asm("bfcvtn %0.4h, %1.4s" : "=w"(out) : "w"(x));
  return out;
#else
  return narrow(bf16_words(x));
#endif
}

// What a T holds of x.
template <typename T> VIDEOAR_INLINE Floats round_to(Floats x) {
  if constexpr (sizeof(T) == 4)
    return x;
  if constexpr (kDotsPairs)
    return as_floats(widen(to_bf16(x)) << 16);
  return as_floats(bf16_words(x) << 16);
}

VIDEOAR_INLINE Floats load(const float *x) {
  Floats value;
  std::memcpy(&value, x, sizeof value);
  return value;
}

VIDEOAR_INLINE Floats load(const bf16 *x) {
  Halves bits;
  std::memcpy(&bits, x, sizeof bits);
  return as_floats(widen(bits) << 16);
}

VIDEOAR_INLINE void store(float *out, Floats x) { std::memcpy(out, &x, sizeof x); }

VIDEOAR_INLINE void store(bf16 *out, Floats x) {
  const Halves bits = to_bf16(x);
  std::memcpy(out, &bits, sizeof bits);
}

// The first `count` < kLanes lanes; the others are 0 and touch no memory.
template <typename T> VIDEOAR_INLINE Floats load_part(const T *x, int64_t count) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(T) == 4)
    return _mm512_maskz_loadu_ps(mask, x);
  else
    return as_floats(widen((Halves)_mm256_maskz_loadu_epi16(mask, x)) << 16);
#else
  T parts[kLanes] = {};
  for (int64_t i = 0; i < count; ++i)
    parts[i] = x[i];
  return load(parts);
#endif
}

template <typename T> VIDEOAR_INLINE void store_part(T *out, Floats x, int64_t count) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(out, mask, x);
  else
    _mm256_mask_storeu_epi16(out, mask, (__m256i)to_bf16(x));
#else
  T parts[kLanes];
  store(parts, x);
  for (int64_t i = 0; i < count; ++i)
    out[i] = parts[i];
#endif
}

template <typename T> VIDEOAR_INLINE Floats load_n(const T *x, int64_t count) {
  return count == kLanes ? load(x) : load_part(x, count);
}

template <typename T> VIDEOAR_INLINE void store_n(T *out, Floats x, int64_t count) {
  if (count == kLanes)
    store(out, x);
  else
    store_part(out, x, count);
}

// function(offset, count) over 0 .. size: whole vectors first, count being the constant kLanes,
// then at most one shorter one. load_n and store_n take that count.
template <typename Function> VIDEOAR_INLINE void for_vectors(int64_t size, Function function) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    function(i, static_cast<int64_t>(kLanes));
  if (i < size)
    function(i, size - i);
}

// e^r for |r| <= log(2)/2: Cephes' expf, its terms paired so that fewer wait for each other.
VIDEOAR_INLINE Floats exp_reduced(Floats r) {
  const Floats square = r * r;
  const Floats low = fma(broadcast(1.6666665459e-1f), r, broadcast(5.0000001201e-1f));
  const Floats middle = fma(broadcast(8.3334519073e-3f), r, broadcast(4.1665795894e-2f));
  const Floats high = fma(broadcast(1.9875691500e-4f), r, broadcast(1.3981999507e-3f));
  const Floats tail = fma(fma(high, square, middle), square, low);
  return fma(tail, square, r + 1.0f);
}

// e^x = 2^n e^r to 2 units in the last place. Below -87.3, where the result is denormal, it may be
// 0; infinity above 88.8; NaN stays NaN.
VIDEOAR_INLINE Floats exp(Floats x) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  // The order of the operands keeps NaN.
  const Floats y = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-104.0f), x));
  const Floats n = _mm512_roundscale_ps(y * 1.44269504f, 8); // to nearest, no exception
#else
  const Floats magic = broadcast(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
  const Floats y = x < -87.33f ? broadcast(-87.33f) : x > 89.0f ? broadcast(89.0f) : x;
  const Floats shifted = y * 1.44269504f + magic;
  const Floats n = shifted - magic;
#endif
  Floats r = fma(n, broadcast(-0.693359375f), y);
  r = fma(n, broadcast(2.12194440e-4f), r);
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  return _mm512_scalef_ps(exp_reduced(r), n);
#else
  // 2^n in two factors: n reaches 128, whose own exponent field would be infinity.
  const Words power = as_words(shifted) - as_words(magic);
  const Words half = ((power + 256u) >> 1) - 128u;
  const Floats factor = as_floats((half + 127u) << 23);
  const Floats result = exp_reduced(r) * factor * as_floats((power - half + 127u) << 23);
  return x < -87.33f ? Floats{} : result;
#endif
}

// 1 / (1 + e^-x)
VIDEOAR_INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }

#if defined(__GNUC__)
using LaneIndices = std::make_integer_sequence<int, kLanes>;

// Lanes of a and b (counted on behind those of a) in a given order.
template <int... Index>
VIDEOAR_INLINE Floats shuffle(Floats a, Floats b, std::integer_sequence<int, Index...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Index...);
#else
  return __builtin_shuffle(a, b, Words{static_cast<uint32_t>(Index)...});
#endif
}

// Exchanges the off-diagonal STEP x STEP parts of every 2 STEP x 2 STEP square.
template <int STEP, int... Lane>
VIDEOAR_INLINE void swap_squares(Floats *rows, std::integer_sequence<int, Lane...>) {
  using Upper = std::integer_sequence<int, (Lane & STEP ? kLanes + Lane - STEP : Lane)...>;
  using Lower = std::integer_sequence<int, (Lane & STEP ? kLanes + Lane : Lane + STEP)...>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & STEP)) {
      const Floats upper = rows[i], lower = rows[i + STEP];
      rows[i] = shuffle(upper, lower, Upper{});
      rows[i + STEP] = shuffle(upper, lower, Lower{});
    }
}

// rows[i][j] <-> rows[j][i], of kLanes rows.
VIDEOAR_INLINE void transpose(Floats *rows) {
  if constexpr (kLanes > 8)
    swap_squares<8>(rows, LaneIndices{});
  if constexpr (kLanes > 4)
    swap_squares<4>(rows, LaneIndices{});
  swap_squares<2>(rows, LaneIndices{});
  swap_squares<1>(rows, LaneIndices{});
}
#else
VIDEOAR_INLINE void transpose(Floats *) {}
#endif
