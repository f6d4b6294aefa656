// Kernel of rms_norm.cpp, compiled by foreach_isa.h.

// The sum (x + residual, rounded to T) of lanes i .. i + count, stored where there is a residual.
template <typename T>
VIDEOAR_INLINE Floats add_residual(const T *x, const T *residual, T *s, int64_t i, int64_t count) {
  if (!residual)
    return load_n(x + i, count);
  const Floats value = load_n(x + i, count) + load_n(residual + i, count);
  store_n(s + i, value, count);
  return round_to<T>(value);
}

template <typename T, typename W>
void rms_norm_row(const T *x, const T *residual, const W *weight, T *y, T *s, int64_t width,
                  float eps) {
  Floats squares{};
  for_vectors(width, [&](int64_t i, int64_t count) {
    const Floats value = add_residual(x, residual, s, i, count);
    squares = fma(value, value, squares);
  });
  const Floats scale = broadcast(1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps));
  const T *source = residual ? s : x;
  for_vectors(width, [&](int64_t i, int64_t count) {
    const Floats normalised = round_to<T>(load_n(source + i, count) * scale);
    store_n(y + i, normalised * load_n(weight + i, count), count);
  });
}

template <typename T, typename W> void rms_norm_rows(const RmsNorm &call) {
  const auto *x = static_cast<const T *>(call.x);
  const auto *residual = static_cast<const T *>(call.residual);
  const auto *weight = static_cast<const W *>(call.weight);
  auto *y = static_cast<T *>(call.y), *s = static_cast<T *>(call.s);
  const bool parallel = call.rows * call.width >= kParallelElements;
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t row = 0; row < call.rows; ++row)
    rms_norm_row(x + row * call.stride_x,
                 residual ? residual + row * call.stride_residual : nullptr, weight,
                 y + row * call.width, s ? s + row * call.width : nullptr, call.width, call.eps);
}
