// Kernel of bsq_quantize.cpp, compiled by foreach_isa.h. One item is a frame and a block of kLanes
// channels, over all scales; residual, sum and codes are blocks [cell][kLanes].
#include "bands.inl"
#include "bits.inl"
#include "blocks.inl"

struct QuantizeBlock {
  float *residual;
  float *sum;
  float *codes;
  float *line;
  int64_t count; // channels
};

// Bits of one scale from the residual, written from element `offset` of the token-major results.
VIDEOAR_INLINE void quantize_scale(const BsqQuantize &call, const QuantizeScale &scale,
                                   const QuantizeBlock &block, int64_t offset) {
  const auto quantize = [&](int64_t cell, Floats y) {
    const int64_t at = offset + cell * call.num_bits;
    Words bit = ones_where_greater(y, Floats{});
    store_bits(call.targets + at, bit, block.count);
    if (call.flips)
      bit = bit ^ load_bits(call.flips + at, block.count);
    store_bits(call.bits + at, bit, block.count);
    if (call.scale_inputs)
      store_n(call.scale_inputs + at, y, block.count);
    store(block.codes + cell * kLanes, code_of(bit, call.code));
  };
  if (scale.is_full)
    for (int64_t cell = 0; cell < scale.grid.cells(); ++cell)
      quantize(cell, load(block.residual + cell * kLanes));
  else
    resample_block(block.residual, scale.down_rows, scale.down_columns, block.line, quantize);
}

// sum += up(codes), residual -= up(codes).
VIDEOAR_INLINE void move_codes(const QuantizeScale &scale, const QuantizeBlock &block) {
  const auto move = [&](int64_t cell, Floats value) {
    float *residual = block.residual + cell * kLanes, *sum = block.sum + cell * kLanes;
    store(residual, load(residual) - value);
    store(sum, load(sum) + value);
  };
  if (scale.is_full)
    for (int64_t cell = 0; cell < scale.grid.cells(); ++cell)
      move(cell, load(block.codes + cell * kLanes));
  else
    resample_block(block.codes, scale.up_rows, scale.up_columns, block.line, move);
}

// The sum at this scale's size, as next-scale inputs.
template <typename T>
VIDEOAR_INLINE void write_inputs(const BsqQuantize &call, const QuantizeScale &scale,
                                 const QuantizeBlock &block, T *inputs) {
  const auto write = [&](int64_t cell, Floats value) {
    store_n(inputs + cell * call.num_bits, value, block.count);
  };
  if (scale.is_full)
    for (int64_t cell = 0; cell < scale.grid.cells(); ++cell)
      write(cell, load(block.sum + cell * kLanes));
  else
    resample_block(block.sum, scale.resize_rows, scale.resize_columns, block.line, write);
}

template <typename T>
void quantize_item(const BsqQuantize &call, const QuantizePlan &plan, int64_t frame_of_clips,
                   int64_t first_bit, float *scratch) {
  const Grid full = plan.scales[plan.num_scales - 1].grid;
  const int64_t cells = full.cells(), d = call.num_bits;
  const int64_t frame = frame_of_clips % call.frames, batch = frame_of_clips / call.frames;
  const int64_t count = d - first_bit < kLanes ? d - first_bit : kLanes;
  float *residual = scratch, *sum = residual + cells * kLanes, *codes = sum + cells * kLanes;
  const QuantizeBlock block{residual, sum, codes, codes + plan.max_cells * kLanes, count};
  load_block(static_cast<const T *>(call.x) + batch * call.stride_batch +
                 frame * call.stride_frame + first_bit * call.stride_bit,
             count, full.height, full.width, call.stride_bit, call.stride_row, call.stride_column,
             residual);
  std::memset(sum, 0, sizeof(float) * cells * kLanes);
  T *inputs = static_cast<T *>(call.inputs);
  int64_t offset = frame_of_clips * plan.num_tokens * d + first_bit;
  // Nothing comes before the first scale of the first frame: the sum is still zero.
  if (inputs && frame == 0)
    write_inputs(call, plan.scales[0], block, inputs + offset);
  for (int64_t k = 0; k < plan.num_scales; ++k) {
    const QuantizeScale &scale = plan.scales[k];
    if (inputs && k > 0)
      write_inputs(call, scale, block, inputs + offset);
    quantize_scale(call, scale, block, offset);
    move_codes(scale, block);
    offset += scale.grid.cells() * d;
  }
  store_block(sum, count, cells,
              static_cast<T *>(call.reconstruction) + (frame_of_clips * d + first_bit) * cells);
  // The next frame's first scale starts from this frame; behind the last there is none.
  if (inputs && frame + 1 < call.frames)
    write_inputs(call, plan.scales[0], block, inputs + offset);
}

template <typename T> void quantize_frames(const BsqQuantize &call, const QuantizePlan &plan) {
  const Grid full = plan.scales[plan.num_scales - 1].grid;
  const int64_t blocks = (call.num_bits + kLanes - 1) / kLanes;
  const int64_t frames = call.batch * call.frames;
  const int64_t values = frames * call.num_bits * full.cells() * plan.num_scales;
  const bool parallel = values >= kParallelValues;
  const Scratch scratch((2 * full.cells() + plan.max_cells + plan.max_width) * kLanes, parallel);
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t item = 0; item < frames * blocks; ++item)
    quantize_item<T>(call, plan, item / blocks, item % blocks * kLanes, scratch.mine());
}
