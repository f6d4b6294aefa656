// Bits in vectors, one 0 or 1 a lane, for kernels compiled by foreach_isa.h.

#if defined(__GNUC__)
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

VIDEOAR_INLINE Words widen(Bytes x) { return __builtin_convertvector(x, Words); }
VIDEOAR_INLINE Bytes narrow_to_bytes(Words x) { return __builtin_convertvector(x, Bytes); }
#else
typedef uint8_t Bytes;

VIDEOAR_INLINE Words widen(Bytes x) { return x; }
VIDEOAR_INLINE Bytes narrow_to_bytes(Words x) { return static_cast<Bytes>(x); }
#endif

// 0 where a lane is NaN.
VIDEOAR_INLINE Words ones_where_greater(Floats a, Floats b) {
  return a > b ? Words{} + 1u : Words{};
}

VIDEOAR_INLINE Floats code_of(Words bit, float code) {
  return bit == 1u ? broadcast(code) : broadcast(-code);
}

VIDEOAR_INLINE void store_bits(uint8_t *out, Words bit, int64_t count) {
  const Bytes bytes = narrow_to_bytes(bit);
  if (count == kLanes)
    std::memcpy(out, &bytes, kLanes);
  else
    std::memcpy(out, &bytes, count);
}

VIDEOAR_INLINE Words load_bits(const uint8_t *bits, int64_t count) {
  Bytes bytes{};
  if (count == kLanes)
    std::memcpy(&bytes, bits, kLanes);
  else
    std::memcpy(&bytes, bits, count);
  return widen(bytes);
}
