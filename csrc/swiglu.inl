// Kernel of swiglu.cpp, compiled by foreach_isa.h.

template <typename T> void swiglu_row(const T *gate, const T *up, T *y, int64_t width) {
  for_vectors(width, [&](int64_t i, int64_t count) {
    const Floats g = load_n(gate + i, count);
    store_n(y + i, round_to<T>(g / (1.0f + exp(-g))) * load_n(up + i, count), count);
  });
}

template <typename T> void swiglu_rows(const SwiGlu &call) {
  const auto *gate = static_cast<const T *>(call.gate), *up = static_cast<const T *>(call.up);
  auto *y = static_cast<T *>(call.y);
  // Contiguous tensors are one long row, so rows are shared out in pieces.
  const int64_t pieces = (call.width + kPiece - 1) / kPiece;
  const bool parallel = shares(call.rows * call.width, kParallelElements, call.awake);
#pragma omp parallel for collapse(2) schedule(static) if (parallel)
  for (int64_t row = 0; row < call.rows; ++row) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = piece * kPiece, rest = call.width - first;
      swiglu_row(gate + row * call.stride_gate + first, up + row * call.stride_up + first,
                 y + row * call.width + first, rest < kPiece ? rest : kPiece);
    }
  }
}

template <typename T>
void swiglu_backward_row(const T *gate, const T *up, const T *grad, T *grad_gate, T *grad_up,
                         int64_t width) {
  for_vectors(width, [&](int64_t i, int64_t count) {
    const Floats g = load_n(gate + i, count), p = sigmoid(g);
    const Floats scaled = load_n(grad + i, count) * p;
    store_n(grad_gate + i, scaled * load_n(up + i, count) * (1.0f + g * (1.0f - p)), count);
    store_n(grad_up + i, scaled * g, count);
  });
}

template <typename T> void swiglu_backward_rows(const SwiGluBackward &call) {
  const auto *gate = static_cast<const T *>(call.gate), *up = static_cast<const T *>(call.up);
  const auto *grad = static_cast<const T *>(call.grad);
  auto *grad_gate = static_cast<T *>(call.grad_gate), *grad_up = static_cast<T *>(call.grad_up);
  const int64_t pieces = (call.width + kPiece - 1) / kPiece;
  const bool parallel = call.rows * call.width >= kParallelElements;
#pragma omp parallel for collapse(2) schedule(static) if (parallel)
  for (int64_t row = 0; row < call.rows; ++row) {
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = piece * kPiece, rest = call.width - first;
      const int64_t offset = row * call.width + first;
      swiglu_backward_row(gate + row * call.stride_gate + first, up + row * call.stride_up + first,
                          grad + row * call.stride_grad + first, grad_gate + offset,
                          grad_up + offset, rest < kPiece ? rest : kPiece);
    }
  }
}
