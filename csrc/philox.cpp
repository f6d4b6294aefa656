#include "philox.h"

#include "check.h"

namespace videoar {
namespace {

// Below this many numbers (about 0.2 ms on one core) waking other threads costs more than it saves.
constexpr int64_t kParallelNumbers = int64_t{1} << 15;

} // namespace

void philox_uniform(const int64_t *seeds, const int64_t *frames, int64_t rows, int64_t scale,
                    int64_t num_tokens, int64_t num_bits, float *out) {
  VIDEOAR_CHECK(rows >= 0 && num_tokens >= 0 && num_bits >= 0, "rows ", rows, ", num_tokens ",
                num_tokens, ", num_bits ", num_bits);
  VIDEOAR_CHECK(num_tokens <= kPhiloxLimit && num_bits <= kPhiloxLimit, "num_tokens ", num_tokens,
                ", num_bits ", num_bits);
  VIDEOAR_CHECK(scale >= 0 && scale < kPhiloxLimit, "scale ", scale);
  if (rows == 0 || num_tokens == 0 || num_bits == 0)
    return;
  VIDEOAR_CHECK(seeds && frames && out, "seeds ", seeds, ", frames ", frames, ", out ", out);
  for (int64_t row = 0; row < rows; ++row)
    VIDEOAR_CHECK(frames[row] >= 0 && frames[row] < kPhiloxLimit, "frames[", row,
                  "] = ", frames[row]);

  const bool parallel = rows * num_tokens * num_bits >= kParallelNumbers;
// A single row must also use every core, so its tokens are shared out as well.
#pragma omp parallel for collapse(2) schedule(static) if (parallel)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t token = 0; token < num_tokens; ++token) {
      const PhiloxStream stream(seeds[row], frames[row], scale);
      float *bits = out + (row * num_tokens + token) * num_bits;
      for (int64_t bit = 0; bit < num_bits; ++bit) {
        const uint32_t word =
            philox_word0(stream, static_cast<uint32_t>(token), static_cast<uint32_t>(bit));
        bits[bit] = static_cast<float>(word >> 8) * 0x1p-24f;
      }
    }
  }
}

} // namespace videoar
