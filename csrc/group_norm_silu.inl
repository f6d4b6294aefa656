// Kernel of group_norm_silu.cpp, compiled by foreach_isa.h.

// A frame's cells.
template <typename T> struct Cells {
  const T *x; // [pixels, width]
  int64_t pixels, width;

  // Per channel, about where its values are: the median of three cells, for an outlier is none.
  VIDEOAR_INLINE Floats pivot(int64_t channel, int64_t count) const {
    const auto at = [&](int64_t pixel) { return load_n(x + pixel * width + channel, count); };
    const Floats first = at(0), middle = at(pixels / 2);
    return max(min(first, middle), min(max(first, middle), at(pixels - 1)));
  }
};

// Per channel, sums of d and d^2 over `pixels` cells from x on, d being the distance from the
// frame's pivot: that from 0 would leave nothing of the variance around a far mean. VECTORS of them
// stay in registers.
template <int VECTORS, typename T>
VIDEOAR_INLINE void sums_of_block(const Cells<T> &frame, const T *x, int64_t pixels,
                                  int64_t channel, int64_t count, float *sums, float *squares) {
  const int64_t width = frame.width;
  Floats origin[VECTORS], sum[VECTORS] = {}, square[VECTORS] = {};
  for (int v = 0; v < VECTORS; ++v)
    origin[v] = frame.pivot(channel + v * kLanes, count);
  x += channel;
  for (int64_t p = 0; p < pixels; ++p)
    for (int v = 0; v < VECTORS; ++v) {
      const Floats d = load_n(x + p * width + v * kLanes, count) - origin[v];
      sum[v] = sum[v] + d;
      square[v] = fma(d, d, square[v]);
    }
  for (int v = 0; v < VECTORS; ++v) {
    store_n(sums + channel + v * kLanes, sum[v], count);
    store_n(squares + channel + v * kLanes, square[v], count);
  }
}

template <typename T>
void sums_of_chunk(const Cells<T> &frame, const T *x, int64_t pixels, float *sums, float *squares) {
  constexpr int kVectors = 4;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= frame.width; c += kVectors * kLanes)
    sums_of_block<kVectors>(frame, x, pixels, c, int64_t{kLanes}, sums, squares);
  for_vectors(frame.width - c, [&](int64_t i, int64_t count) {
    sums_of_block<1>(frame, x, pixels, c + i, count, sums, squares);
  });
}

// Scale and shift of every channel of a frame from the sums of its chunks; `totals` is scratch for
// 2 width doubles.
template <typename T>
void affine_of_frame(const GroupNormSilu &call, const Cells<T> &frame, const float *sums,
                     int64_t chunks, double *totals, float *scale, float *shift) {
  const int64_t width = call.width, members = width / call.groups;
  const auto pixels = static_cast<double>(call.pixels);
  // Until it is written, `scale` holds the pivots.
  for_vectors(width,
              [&](int64_t i, int64_t count) { store_n(scale + i, frame.pivot(i, count), count); });
  for (int64_t i = 0; i < 2 * width; ++i)
    totals[i] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < 2 * width; ++i)
      totals[i] += static_cast<double>(sums[chunk * 2 * width + i]);
  for (int64_t group = 0; group < call.groups; ++group) {
    const int64_t first = group * members;
    double mean = 0, squares = 0;
    for (int64_t c = first; c < first + members; ++c)
      mean += static_cast<double>(scale[c]) + totals[c] / pixels;
    mean /= static_cast<double>(members);
    // Around the group's mean m, a channel with mean m_c has sum((x - m)^2) = M2_c + n (m_c - m)^2.
    for (int64_t c = first; c < first + members; ++c) {
      const double offset = totals[c] / pixels;
      const double distance = static_cast<double>(scale[c]) + offset - mean;
      squares += totals[width + c] - totals[c] * offset + pixels * distance * distance;
    }
    const double variance = squares / (pixels * static_cast<double>(members));
    const double inverse = 1 / std::sqrt(std::max(variance, 0.0) + call.eps);
    for (int64_t c = first; c < first + members; ++c) {
      const double factor = inverse * static_cast<double>(call.weight[c]);
      scale[c] = static_cast<float>(factor);
      shift[c] = static_cast<float>(static_cast<double>(call.bias[c]) - mean * factor);
    }
  }
}

template <typename T>
void normalise_chunk(const T *x, const float *scale, const float *shift, T *y, int64_t pixels,
                     int64_t width) {
  for (int64_t p = 0; p < pixels; ++p)
    for_vectors(width, [&](int64_t i, int64_t count) {
      const Floats value =
          fma(load_n(x + p * width + i, count), load_n(scale + i, count), load_n(shift + i, count));
      store_n(y + p * width + i, value * sigmoid(value), count);
    });
}

template <typename T>
void group_norm_silu_frames(const GroupNormSilu &call, int64_t chunk_pixels, int64_t chunks,
                            float *sums, double *totals, float *affine) {
  const auto *x = static_cast<const T *>(call.x);
  auto *y = static_cast<T *>(call.y);
  const int64_t width = call.width, items = call.frames * chunks;
  const bool parallel = call.frames * call.pixels * width >= kParallelElements;
  const auto frame_of = [&](int64_t t) {
    return Cells<T>{x + t * call.stride_x, call.pixels, width};
  };
#pragma omp parallel if (parallel)
  {
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      const int64_t start = item % chunks * chunk_pixels;
      const Cells<T> frame = frame_of(item / chunks);
      sums_of_chunk(frame, frame.x + start * width, std::min(chunk_pixels, call.pixels - start),
                    sums + item * 2 * width, sums + (item * 2 + 1) * width);
    }
#pragma omp for schedule(static)
    for (int64_t t = 0; t < call.frames; ++t)
      affine_of_frame(call, frame_of(t), sums + t * chunks * 2 * width, chunks,
                      totals + t * 2 * width, affine + t * 2 * width, affine + (t * 2 + 1) * width);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      const int64_t t = item / chunks, start = item % chunks * chunk_pixels;
      const float *scale = affine + t * 2 * width;
      normalise_chunk(x + t * call.stride_x + start * width, scale, scale + width,
                      y + t * call.stride_y + start * width,
                      std::min(chunk_pixels, call.pixels - start), width);
    }
  }
}
