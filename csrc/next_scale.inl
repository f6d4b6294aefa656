// Kernel of next_scale.cpp, compiled by foreach_isa.h. One item is a row and a block of kLanes
// bit channels; items share nothing, so that no result depends on threads or neighbours.
#include "bands.inl"
#include "bits.inl"
#include "blocks.inl"
#include "philox.inl"

// e^x in float64 to 1e-10, rounded to float32: the float32 nearest to e^x but for one in 10^6.
VIDEOAR_INLINE float precise_exp(float x) {
  // Beyond, the rounding to float32 gives 0 or infinity; a NaN passes.
  double v = static_cast<double>(x);
  v = v < -120.0 ? -120.0 : v;
  v = v > 120.0 ? 120.0 : v;
  const double magic = 0x1.8p52; // adding it rounds to an integer, in the lower bits
  const double shifted = v * 1.4426950408889634 + magic;
  const double r = v - (shifted - magic) * 0.6931471805599453;
  // Taylor: |r| <= log(2)/2, and the first term left out is r^9 / 9! < 2.1e-10.
  double p = 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 1.0 / 2;
  p = p * r + 1.0;
  p = p * r + 1.0;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 52) + (uint64_t{1023} << 52);
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return static_cast<float>(p * power);
}

// 1 / (1 + e^-x), each operation rounded once, so the same on every processor; seen at most 2 units
// in the last place from torch.sigmoid, in 96 of 100 equal.
VIDEOAR_INLINE Floats precise_sigmoid(Floats x) {
  float values[kLanes];
  store(values, x);
  for (int i = 0; i < kLanes; ++i)
    values[i] = 1.0f / (1.0f + precise_exp(-values[i]));
  return load(values);
}

// logit_1 - logit_0 of `count` neighbouring bits; makes a lane of `poison` NaN where one of them is
// not finite.
template <typename T>
VIDEOAR_INLINE Floats bit_delta(const T *pairs, int64_t count, Floats &poison) {
  float delta[kLanes] = {}, zeros[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) {
    const float zero = to_float(pairs[2 * i]), one = to_float(pairs[2 * i + 1]);
    delta[i] = one - zero;
    zeros[i] = 0.0f * zero + 0.0f * one;
  }
  poison = poison + load(zeros);
  return load(delta);
}

// What one item needs of its row.
template <typename T> struct SamplingRow {
  const T *logits;
  const T *uncond;
  const float *noise;
  PhiloxStream stream;
  float guidance;
  float temperature;
};

template <typename T>
VIDEOAR_INLINE Words sample_bits(const NextScale &call, const SamplingRow<T> &row, int64_t token,
                                 int64_t first_bit, int64_t count, Floats &poison) {
  Floats delta =
      bit_delta(row.logits + token * call.logits_stride_token + 2 * first_bit, count, poison);
  if (row.uncond) {
    const Floats base =
        bit_delta(row.uncond + token * call.uncond_stride_token + 2 * first_bit, count, poison);
    delta = base + row.guidance * (delta - base);
  }
  if (row.temperature == 0)
    return ones_where_greater(delta, Floats{});
  const Floats uniforms = row.noise ? load_n(row.noise + token * call.num_bits + first_bit, count)
                                    : bit_uniforms(row.stream, token, first_bit);
  return ones_where_greater(precise_sigmoid(delta / row.temperature), uniforms);
}

// Bits of all tokens, and their codes as a block [token][kLanes]; whether all logits were finite.
template <typename T>
bool sample_block(const NextScale &call, const SamplingRow<T> &row, int64_t first_bit,
                  int64_t count, uint8_t *bits, float *codes) {
  Floats poison{};
  for (int64_t token = 0; token < call.grid.cells(); ++token) {
    const Words bit = count == kLanes ? sample_bits<T>(call, row, token, first_bit, kLanes, poison)
                                      : sample_bits<T>(call, row, token, first_bit, count, poison);
    store_bits(bits + token * call.num_bits, bit, count);
    store(codes + token * kLanes, code_of(bit, call.code));
  }
  float lanes[kLanes];
  store(lanes, poison);
  bool finite = true;
  for (int i = 0; i < kLanes; ++i)
    finite = finite && lanes[i] == 0;
  return finite;
}

// sum += up(codes), with `sum` a block [cell][kLanes].
VIDEOAR_INLINE void add_codes(const NextScale &call, const NextScaleBands &bands,
                              const float *codes, float *scratch, float *sum) {
  const auto add = [&](int64_t cell, Floats value) {
    store(sum + cell * kLanes, load(sum + cell * kLanes) + value);
  };
  if (call.grid == call.full)
    for (int64_t cell = 0; cell < call.full.cells(); ++cell)
      add(cell, load(codes + cell * kLanes));
  else
    resample_block(codes, bands.up_rows, bands.up_columns, scratch, add);
}

// `inputs` [next][d] = the sum at the next scale's size, this block's channels.
VIDEOAR_INLINE void write_inputs(const NextScale &call, const NextScaleBands &bands,
                                 const float *sum, float *scratch, int64_t count, float *inputs) {
  const auto write = [&](int64_t cell, Floats value) {
    store_n(inputs + cell * call.num_bits, value, count);
  };
  if (call.next == call.full)
    for (int64_t cell = 0; cell < call.full.cells(); ++cell)
      write(cell, load(sum + cell * kLanes));
  else
    resample_block(sum, bands.next_rows, bands.next_columns, scratch, write);
}

template <typename T>
void next_scale_item(const NextScale &call, const NextScaleBands &bands, int64_t row, int64_t block,
                     float *scratch) {
  const int64_t tokens = call.grid.cells(), cells = call.full.cells(), d = call.num_bits;
  const int64_t first_bit = block * kLanes;
  const int64_t count = d - first_bit < kLanes ? d - first_bit : kLanes;
  const auto *uncond = static_cast<const T *>(call.uncond);
  const SamplingRow<T> sampling{static_cast<const T *>(call.logits) + row * call.logits_stride_row,
                                uncond ? uncond + row * call.uncond_stride_row : nullptr,
                                call.noise ? call.noise + row * tokens * d : nullptr,
                                PhiloxStream(call.seeds ? call.seeds[row] : 0,
                                             call.frames ? call.frames[row] : call.frame,
                                             call.scale),
                                call.guidances ? call.guidances[row] : call.guidance,
                                call.temperatures ? call.temperatures[row] : call.temperature};
  float *codes = scratch, *sum = codes + tokens * kLanes, *line = sum + cells * kLanes;
  uint8_t *bits = call.bits + row * call.bits_stride_row + first_bit;
  if (!sample_block(call, sampling, first_bit, count, bits, codes) && call.failed) {
#pragma omp atomic write
    call.failed[row] = 1;
  }
  const int64_t maps = (row * d + first_bit) * cells;
  load_cells(call.accumulator + maps, count, cells, cells, sum);
  add_codes(call, bands, codes, line, sum);
  store_block(sum, count, cells, call.sum + maps);
  write_inputs(call, bands, sum, line, count,
               call.inputs + row * call.next.cells() * d + first_bit);
}

template <typename T> void next_scale_rows(const NextScale &call, const NextScaleBands &bands) {
  const int64_t cells = call.grid.cells() + call.full.cells();
  const int64_t line = call.grid.width > call.full.width ? call.grid.width : call.full.width;
  const int64_t blocks = (call.num_bits + kLanes - 1) / kLanes;
  const bool parallel = call.rows * call.num_bits * cells >= kParallelValues;
  const Scratch scratch((cells + line) * kLanes, parallel);
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t item = 0; item < call.rows * blocks; ++item)
    next_scale_item<T>(call, bands, item / blocks, item % blocks, scratch.mine());
}
