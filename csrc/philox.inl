// The uniforms of kLanes neighbouring bits of one token, for kernels compiled by foreach_isa.h.

#if defined(__GNUC__)
// A 64-bit lane holds one counter word in its lower half; what is above is never read.
typedef uint64_t Longs __attribute__((vector_size(4 * kLanes)));

VIDEOAR_INLINE Longs multiply(Longs word, uint32_t multiplier) {
#if VIDEOAR_ISA >= VIDEOAR_AVX512
  return (Longs)_mm512_mul_epu32((__m512i)word, _mm512_set1_epi64(multiplier));
#elif VIDEOAR_ISA == VIDEOAR_AVX2
  return (Longs)_mm256_mul_epu32((__m256i)word, _mm256_set1_epi64x(multiplier));
#elif VIDEOAR_X86
  return (Longs)_mm_mul_epu32((__m128i)word, _mm_set1_epi64x(multiplier));
#elif VIDEOAR_ARM
  return (Longs)vmull_u32(vmovn_u64((uint64x2_t)word), vdup_n_u32(multiplier));
#else
  return (word & 0xFFFFFFFFu) * (Longs{} + multiplier);
#endif
}

VIDEOAR_INLINE Longs philox_words(const PhiloxStream &stream, Longs token, Longs bit) {
  Longs c0 = Longs{} + stream.frame, c1 = Longs{} + stream.scale, c2 = token, c3 = bit;
  uint32_t k0 = stream.key0, k1 = stream.key1;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const Longs product0 = multiply(c0, kPhiloxMultiplier0);
    const Longs product1 = multiply(c2, kPhiloxMultiplier1);
    c0 = (product1 >> 32) ^ c1 ^ k0;
    c1 = product1;
    c2 = (product0 >> 32) ^ c3 ^ k1;
    c3 = product0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return c0;
}

VIDEOAR_INLINE Floats bit_uniforms(const PhiloxStream &stream, int64_t token, int64_t first_bit) {
  Words bits;
  for (int i = 0; i < kLanes; ++i)
    bits[i] = static_cast<uint32_t>(first_bit + i);
  Longs pairs;
  std::memcpy(&pairs, &bits, sizeof pairs);
  const Longs tokens = Longs{} + static_cast<uint64_t>(token);
  // Neighbours share a 64-bit lane: its lower half is one stream of counters, its upper another.
  const Longs lower = philox_words(stream, tokens, pairs);
  const Longs upper = philox_words(stream, tokens, pairs >> 32);
  const Longs mixed = (lower & 0xFFFFFFFFu) | (upper << 32);
  Words words;
  std::memcpy(&words, &mixed, sizeof words);
  typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
  return __builtin_convertvector((Integers)(words >> 8), Floats) * 0x1p-24f;
}
#else
VIDEOAR_INLINE Floats bit_uniforms(const PhiloxStream &stream, int64_t token, int64_t first_bit) {
  const uint32_t word =
      philox_word0(stream, static_cast<uint32_t>(token), static_cast<uint32_t>(first_bit));
  return static_cast<float>(word >> 8) * 0x1p-24f;
}
#endif
