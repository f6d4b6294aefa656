// Sums over the blocks of a kernel whose blocks each wrote one row of partial sums.
#pragma once

#include <cstdint>

namespace videoar {

// out[c] = sum over r of partial[r][c], in double and in the order of the rows, so that the result
// depends neither on the number of threads nor on which one computed a row.
void column_sums(const float *partial, int64_t rows, int64_t width, float *out);

} // namespace videoar
