// kLanes maps as a block [cell][kLanes] of floats, for kernels compiled by foreach_isa.h: every
// load and store of a kernel is one vector then, whatever the grid. Here are the ways in and out of
// it.

VIDEOAR_INLINE float to_float(float x) { return x; }

VIDEOAR_INLINE float to_float(bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// `cells` <= kLanes neighbouring cells of `count` maps; absent maps are zero.
template <typename T>
VIDEOAR_INLINE void load_tile(const T *x, int64_t count, int64_t cells, int64_t stride_map,
                              float *block) {
  Floats rows[kLanes];
#pragma GCC unroll 16
  for (int c = 0; c < kLanes; ++c)
    rows[c] = c < count ? load_n(x + c * stride_map, cells) : Floats{};
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (i < cells)
      store(block + i * kLanes, rows[i]);
}

template <typename T>
VIDEOAR_INLINE void store_tile(const float *block, int64_t count, int64_t cells, int64_t stride_map,
                               T *out) {
  Floats rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    rows[i] = i < cells ? load(block + i * kLanes) : Floats{};
  transpose(rows);
#pragma GCC unroll 16
  for (int c = 0; c < kLanes; ++c)
    if (c < count)
      store_n(out + c * stride_map, rows[c], cells);
}

// Maps [count, cells] whose cells are neighbours in memory.
template <typename T>
VIDEOAR_INLINE void load_cells(const T *x, int64_t count, int64_t cells, int64_t stride_map,
                               float *block) {
  int64_t cell = 0;
  if (count == kLanes)
    for (; cell + kLanes <= cells; cell += kLanes)
      load_tile(x + cell, kLanes, kLanes, stride_map, block + cell * kLanes);
  for (; cell < cells; cell += kLanes)
    load_tile(x + cell, count, cells - cell < kLanes ? cells - cell : kLanes, stride_map,
              block + cell * kLanes);
}

// Strided maps [count, height, width].
template <typename T>
VIDEOAR_INLINE void load_block(const T *x, int64_t count, int64_t height, int64_t width,
                               int64_t stride_map, int64_t stride_row, int64_t stride_column,
                               float *block) {
  if (stride_column == 1 && stride_row == width)
    return load_cells(x, count, height * width, stride_map, block);
  for (int64_t p = 0; p < height; ++p)
    for (int64_t q = 0; q < width; ++q) {
      const T *cell = x + p * stride_row + q * stride_column;
      float values[kLanes] = {};
      for (int64_t c = 0; c < count; ++c)
        values[c] = to_float(cell[c * stride_map]);
      store(block + (p * width + q) * kLanes, load(values));
    }
}

// To contiguous maps [count, cells].
template <typename T>
VIDEOAR_INLINE void store_block(const float *block, int64_t count, int64_t cells, T *out) {
  int64_t cell = 0;
  if (count == kLanes)
    for (; cell + kLanes <= cells; cell += kLanes)
      store_tile(block + cell * kLanes, kLanes, kLanes, cells, out + cell);
  for (; cell < cells; cell += kLanes)
    store_tile(block + cell * kLanes, count, cells - cell < kLanes ? cells - cell : kLanes, cells,
               out + cell);
}
