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
  const bool parallel = shares(call.rows * call.width, kParallelElements, call.awake);
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t row = 0; row < call.rows; ++row)
    rms_norm_row(x + row * call.stride_x,
                 residual ? residual + row * call.stride_residual : nullptr, weight,
                 y + row * call.width, s ? s + row * call.width : nullptr, call.width, call.eps);
}

// The gradient of one row; `partial`, where it is not null, gains what the weight gets from it.
template <typename T, typename W>
VIDEOAR_INLINE void rms_norm_backward_row(const T *s, const W *weight, const T *grad_y,
                                          const T *grad_s, T *grad_x, float *partial, int64_t width,
                                          float eps) {
  Floats squares{}, products{};
  for_vectors(width, [&](int64_t i, int64_t count) {
    const Floats value = load_n(s + i, count);
    squares = fma(value, value, squares);
    products = fma(load_n(grad_y + i, count) * load_n(weight + i, count), value, products);
  });
  const float channels = static_cast<float>(width);
  const Floats scale = broadcast(1.0f / std::sqrt(sum(squares) / channels + eps));
  const Floats mean = broadcast(sum(products * scale) / channels);
  for_vectors(width, [&](int64_t i, int64_t count) {
    const Floats normalised = load_n(s + i, count) * scale, grad = load_n(grad_y + i, count);
    if (partial)
      store_n(partial + i, fma(grad, round_to<T>(normalised), load_n(partial + i, count)), count);
    Floats result = (grad * load_n(weight + i, count) - normalised * mean) * scale;
    if (grad_s)
      result = result + load_n(grad_s + i, count);
    store_n(grad_x + i, result, count);
  });
}

// `partial` holds a row for every kBlockRows rows, or is null.
template <typename T, typename W>
void rms_norm_backward_rows(const RmsNormBackward &call, float *partial) {
  const auto *s = static_cast<const T *>(call.s), *grad_y = static_cast<const T *>(call.grad_y);
  const auto *grad_s = static_cast<const T *>(call.grad_s);
  const auto *weight = static_cast<const W *>(call.weight);
  auto *grad_x = static_cast<T *>(call.grad_x);
  const int64_t width = call.width, blocks = (call.rows + kBlockRows - 1) / kBlockRows;
  const bool parallel = call.rows * width >= kParallelElements;
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t block = 0; block < blocks; ++block) {
    float *sums = partial ? partial + block * width : nullptr;
    for (int64_t i = 0; sums && i < width; ++i)
      sums[i] = 0;
    const int64_t first = block * kBlockRows, last = std::min(first + kBlockRows, call.rows);
    for (int64_t row = first; row < last; ++row)
      rms_norm_backward_row(s + row * call.stride_s, weight, grad_y + row * call.stride_y,
                            grad_s ? grad_s + row * call.stride_grad_s : nullptr,
                            grad_x + row * width, sums, width, call.eps);
  }
}
