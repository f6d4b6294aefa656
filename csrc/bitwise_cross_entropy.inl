// Kernel of bitwise_cross_entropy.cpp, compiled by foreach_isa.h.

inline float widened(float x) { return x; }

inline float widened(bf16 x) {
  const uint32_t word = uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// z of up to kPiece bits; `z` is filled up with zeros to whole vectors.
template <typename T>
VIDEOAR_INLINE void differences(const T *x, const uint8_t *bits, int64_t count, float *z) {
  for (int64_t i = 0; i < count; ++i) {
    const float delta = widened(x[2 * i + 1]) - widened(x[2 * i]);
    z[i] = bits[i] ? -delta : delta;
  }
  for (int64_t i = count; i % kLanes; ++i)
    z[i] = 0;
}

// log(1 + u) for 0 <= u <= 1, to 2 units in the last place: 2 atanh(u / (2 + u)) by its series,
// whose first term left out is below 2e-9 of the sum.
VIDEOAR_INLINE Floats log1p_of_unit(Floats u) {
  const Floats t = u / (u + 2.0f), square = t * t;
  Floats series = broadcast(1.0f / 15);
  series = fma(series, square, broadcast(1.0f / 13));
  series = fma(series, square, broadcast(1.0f / 11));
  series = fma(series, square, broadcast(1.0f / 9));
  series = fma(series, square, broadcast(1.0f / 7));
  series = fma(series, square, broadcast(1.0f / 5));
  series = fma(series, square, broadcast(1.0f / 3));
  return 2.0f * fma(series * square, t, t);
}

// log(1 + e^z); NaN stays NaN.
VIDEOAR_INLINE Floats softplus(Floats z) {
  const Floats magnitude = as_floats(as_words(z) & 0x7FFFFFFFu);
  return max(z, Floats{}) + log1p_of_unit(exp(-magnitude));
}

// Losses of one token into `loss` where that is not null; returns their sum.
template <typename T>
double losses_of_token(const T *x, const uint8_t *bits, int64_t num_bits, float *loss) {
  double total = 0;
  for (int64_t first = 0; first < num_bits; first += kPiece) {
    const int64_t size = std::min(kPiece, num_bits - first);
    alignas(64) float z[kPiece];
    differences(x + 2 * first, bits + first, size, z);
    Floats sums{};
    for_vectors(size, [&](int64_t i, int64_t count) {
      Floats value = softplus(load(z + i));
      if (count < kLanes) { // what lies behind the last bit does not count
        store(z + i, value);
        value = load_part(z + i, count);
      }
      sums = sums + value;
      if (loss)
        store_n(loss + first + i, value, count);
    });
    total += static_cast<double>(sum(sums));
  }
  return total;
}

// `sums` gets a number for every kBlockRows tokens.
template <typename T> void losses(const BitwiseCrossEntropy &call, float *loss, double *sums) {
  const auto *x = static_cast<const T *>(call.x);
  const int64_t blocks = (call.rows + kBlockRows - 1) / kBlockRows;
  const bool parallel = call.rows * call.num_bits >= kParallelBits;
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t block = 0; block < blocks; ++block) {
    sums[block] = 0;
    const int64_t first = block * kBlockRows, last = std::min(first + kBlockRows, call.rows);
    for (int64_t row = first; row < last; ++row) {
      float *out = loss ? loss + row * call.num_bits : nullptr;
      if (!call.mask || call.mask[row])
        sums[block] += losses_of_token(x + row * call.stride_x, call.bits + row * call.stride_bits,
                                       call.num_bits, out);
      else if (out)
        std::memset(out, 0, sizeof(float) * call.num_bits);
    }
  }
}

template <typename T>
void gradients_of_token(const T *x, const uint8_t *bits, const float *grad, float same,
                        int64_t num_bits, T *grad_x) {
  for (int64_t first = 0; first < num_bits; first += kPiece) {
    const int64_t size = std::min(kPiece, num_bits - first);
    alignas(64) float z[kPiece], pairs[2 * kPiece];
    differences(x + 2 * first, bits + first, size, z);
    for_vectors(size, [&](int64_t i, int64_t) { store(z + i, sigmoid(load(z + i))); });
    for (int64_t i = 0; i < size; ++i) {
      const float value = (grad ? grad[first + i] : same) * z[i];
      pairs[2 * i] = bits[first + i] ? value : -value;
      pairs[2 * i + 1] = -pairs[2 * i];
    }
    for_vectors(2 * size, [&](int64_t i, int64_t count) {
      store_n(grad_x + 2 * first + i, load_n(pairs + i, count), count);
    });
  }
}

template <typename T>
void gradients(const BitwiseCrossEntropy &call, const float *grad, int64_t stride_grad, float same,
               T *grad_x) {
  const auto *x = static_cast<const T *>(call.x);
  const bool parallel = call.rows * call.num_bits >= kParallelBits;
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t row = 0; row < call.rows; ++row) {
    T *out = grad_x + row * 2 * call.num_bits;
    if (call.mask && !call.mask[row])
      std::memset(out, 0, sizeof(T) * 2 * call.num_bits);
    else
      gradients_of_token(x + row * call.stride_x, call.bits + row * call.stride_bits,
                         grad ? grad + row * stride_grad : nullptr, same, call.num_bits, out);
  }
}
