// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
#pragma once

#include <cstdint>

namespace videoar {

// One float32 in [0, 1) for every bit of every token of every row:
//   counter = (frames[r], scale, token, bit), key = (low, high 32 bits of seeds[r]),
//   out[r, token, bit] = (first output word >> 8) * 2^-24.
// seeds and frames hold `rows` contiguous int64 values, out holds rows * num_tokens * num_bits
// contiguous floats. Throws std::invalid_argument when a size is negative, a pointer is missing or
// a counter word does not fit in 32 bits.
void philox_uniform(const int64_t *seeds, const int64_t *frames, int64_t rows, int64_t scale,
                    int64_t num_tokens, int64_t num_bits, float *out);

} // namespace videoar
