// Separable resampling of a block of kLanes maps (blocks.inl), for kernels compiled by
// foreach_isa.h. Nothing is fused, and rows come before columns: all operations that resample agree
// bit for bit.

template <int64_t TAPS>
VIDEOAR_INLINE Floats weighted(const float *x, int64_t step, const float *weights, int64_t taps) {
  Floats total = weights[0] * load(x);
  for (int64_t a = 1; a < (TAPS ? TAPS : taps); ++a)
    total = total + weights[a] * load(x + a * step);
  return total;
}

template <int64_t TAPS, typename Emit>
VIDEOAR_INLINE void resample_taps(const float *x, const Band &rows, const Band &columns,
                                  float *scratch, Emit emit) {
  const int64_t width = columns.length_in;
  for (int64_t i = 0; i < rows.length_out; ++i) {
    const float *first = x + rows.starts[i] * width * kLanes;
    for (int64_t q = 0; q < width; ++q)
      store(scratch + q * kLanes, weighted<TAPS>(first + q * kLanes, width * kLanes,
                                                 rows.weights + i * rows.taps, rows.taps));
    for (int64_t j = 0; j < columns.length_out; ++j)
      emit(i * columns.length_out + j,
           weighted<TAPS>(scratch + columns.starts[j] * kLanes, kLanes,
                          columns.weights + j * columns.taps, columns.taps));
  }
}

// emit(cell, values) for the cells of the resampled grid, row by row. `scratch` holds
// columns.length_in * kLanes floats.
template <typename Emit>
VIDEOAR_INLINE void resample_block(const float *x, const Band &rows, const Band &columns,
                                   float *scratch, Emit emit) {
  if (rows.taps == 2 && columns.taps == 2)
    resample_taps<2>(x, rows, columns, scratch, emit);
  else
    resample_taps<0>(x, rows, columns, scratch, emit);
}
