#include "philox.h"

#include "check.h"

namespace videoar {
namespace {

constexpr uint32_t kMultiplier0 = 0xD2511F53;
constexpr uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9;
constexpr uint32_t kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 10;
constexpr int64_t kWordLimit = int64_t{1} << 32;
// Below this many numbers (about 0.2 ms on one core) waking other threads costs more than it saves.
constexpr int64_t kParallelNumbers = int64_t{1} << 15;

inline uint32_t philox_word0(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                             uint32_t k1) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * c0;
    const uint64_t product1 = uint64_t{kMultiplier1} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c0;
}

} // namespace

void philox_uniform(const int64_t *seeds, const int64_t *frames, int64_t rows, int64_t scale,
                    int64_t num_tokens, int64_t num_bits, float *out) {
  VIDEOAR_CHECK(rows >= 0 && num_tokens >= 0 && num_bits >= 0, "rows ", rows, ", num_tokens ",
                num_tokens, ", num_bits ", num_bits);
  VIDEOAR_CHECK(num_tokens <= kWordLimit && num_bits <= kWordLimit, "num_tokens ", num_tokens,
                ", num_bits ", num_bits);
  VIDEOAR_CHECK(scale >= 0 && scale < kWordLimit, "scale ", scale);
  if (rows == 0 || num_tokens == 0 || num_bits == 0)
    return;
  VIDEOAR_CHECK(seeds && frames && out, "seeds ", seeds, ", frames ", frames, ", out ", out);
  for (int64_t row = 0; row < rows; ++row)
    VIDEOAR_CHECK(frames[row] >= 0 && frames[row] < kWordLimit, "frames[", row,
                  "] = ", frames[row]);

  const bool parallel = rows * num_tokens * num_bits >= kParallelNumbers;
// A single row must also use every core, so its tokens are shared out as well.
#pragma omp parallel for collapse(2) schedule(static) if (parallel)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t token = 0; token < num_tokens; ++token) {
      const uint64_t seed = static_cast<uint64_t>(seeds[row]);
      const uint32_t k0 = static_cast<uint32_t>(seed);
      const uint32_t k1 = static_cast<uint32_t>(seed >> 32);
      const uint32_t frame = static_cast<uint32_t>(frames[row]);
      float *bits = out + (row * num_tokens + token) * num_bits;
      for (int64_t bit = 0; bit < num_bits; ++bit) {
        const uint32_t word =
            philox_word0(frame, static_cast<uint32_t>(scale), static_cast<uint32_t>(token),
                         static_cast<uint32_t>(bit), k0, k1);
        bits[bit] = static_cast<float>(word >> 8) * 0x1p-24f;
      }
    }
  }
}

} // namespace videoar
