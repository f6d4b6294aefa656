// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
#pragma once

#include <cstdint>

namespace videoar {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85;
constexpr int kPhiloxRounds = 10;
// Counter words are below this.
constexpr int64_t kPhiloxLimit = int64_t{1} << 32;

// What the numbers of one row and scale have in common: two counter words and the key.
struct PhiloxStream {
  uint32_t frame;
  uint32_t scale;
  uint32_t key0;
  uint32_t key1;

  PhiloxStream(int64_t seed, int64_t frame_index, int64_t scale_index)
      : frame(static_cast<uint32_t>(frame_index)), scale(static_cast<uint32_t>(scale_index)),
        key0(static_cast<uint32_t>(static_cast<uint64_t>(seed))),
        key1(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)) {}
};

// The first output word of counter (frame, scale, token, bit). The vector form is philox.inl.
inline uint32_t philox_word0(const PhiloxStream &stream, uint32_t token, uint32_t bit) {
  uint32_t c0 = stream.frame, c1 = stream.scale, c2 = token, c3 = bit;
  uint32_t k0 = stream.key0, k1 = stream.key1;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * c0;
    const uint64_t product1 = uint64_t{kPhiloxMultiplier1} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return c0;
}

// One float32 in [0, 1) for every bit of every token of every row:
//   counter = (frames[r], scale, token, bit), key = (low, high 32 bits of seeds[r]),
//   out[r, token, bit] = (first output word >> 8) * 2^-24.
// seeds and frames hold `rows` contiguous int64 values, out holds rows * num_tokens * num_bits
// contiguous floats. Throws std::invalid_argument when a size is negative, a pointer is missing or
// a counter word does not fit in 32 bits.
void philox_uniform(const int64_t *seeds, const int64_t *frames, int64_t rows, int64_t scale,
                    int64_t num_tokens, int64_t num_bits, float *out);

} // namespace videoar
