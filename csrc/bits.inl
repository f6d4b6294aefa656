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

// e^x in float64 to 1e-10, rounded to float32: the float32 nearest to e^x but for one in 10^6.
VIDEOAR_INLINE float precise_exp(float x) {
  // Beyond, the rounding to float32 gives 0 or infinity; a NaN passes.
  double v = static_cast<double>(x);
  v = v < -120.0 ? -120.0 : v;
  v = v > 120.0 ? 120.0 : v;
  const double magic = 0x1.8p52; // adding it rounds to an integer, in the lower bits
  const double shifted = v * 1.4426950408889634 + magic;
  const double r = v - (shifted - magic) * 0.6931471805599453;
  // Taylor: |r| <= log(2)/2, and the first term left out is r^9 / 9! < 2.1e-10.
  double p = 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 1.0 / 2;
  p = p * r + 1.0;
  p = p * r + 1.0;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 52) + (uint64_t{1023} << 52);
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return static_cast<float>(p * power);
}

// 1 / (1 + e^-x) with each operation rounded once, so the same on every processor, and at most 1.5
// units in the last place off; torch.sigmoid, whose e^x is a faster one, is seen 2 off.
VIDEOAR_INLINE Floats precise_sigmoid(Floats x) {
  float values[kLanes];
  store(values, x);
  for (int i = 0; i < kLanes; ++i)
    values[i] = 1.0f / (1.0f + precise_exp(-values[i]));
  return load(values);
}
