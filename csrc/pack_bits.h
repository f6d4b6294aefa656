// Packing of bits into 32-bit words, little-endian (kernels/pack_bits.py).
#pragma once

#include <cstdint>

namespace videoar {

// words[r, w] = sum_i [bits[r, 32 w + i] != 0] 2^i. `bits` has `rows` rows of `num_bits` bytes,
// stride_row bytes apart; `words` is contiguous [rows, ceil(num_bits / 32)].
// Throws std::invalid_argument for a size or missing pointer that does not fit.
void pack_bits(const uint8_t *bits, uint32_t *words, int64_t rows, int64_t num_bits,
               int64_t stride_row);

// bits[r, 32 w + i] = (words[r, w] >> i) & 1; `bits` is contiguous [rows, num_bits], the rows of
// `words` are stride_row words apart. Throws as pack_bits.
void unpack_bits(const uint32_t *words, uint8_t *bits, int64_t rows, int64_t num_bits,
                 int64_t stride_row);

} // namespace videoar
