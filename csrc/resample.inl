// Kernel of resample.cpp, compiled by foreach_isa.h. One item is a block of kLanes maps.
#include "bands.inl"
#include "blocks.inl"

template <typename T>
void resample_item(const Resample &call, const Band &rows, const Band &columns, int64_t block,
                   float *scratch) {
  const int64_t first = block * kLanes, cells = call.to.cells();
  const int64_t count = call.maps - first < kLanes ? call.maps - first : kLanes;
  float *maps = scratch, *out = maps + call.from.cells() * kLanes, *line = out + cells * kLanes;
  load_block(static_cast<const T *>(call.x) + first * call.stride_map, count, call.from.height,
             call.from.width, call.stride_map, call.stride_row, call.stride_column, maps);
  resample_block(maps, rows, columns, line,
                 [&](int64_t cell, Floats value) { store(out + cell * kLanes, value); });
  store_block(out, count, cells, static_cast<T *>(call.out) + first * cells);
}

template <typename T>
void resample_maps(const Resample &call, const Band &rows, const Band &columns) {
  const int64_t blocks = (call.maps + kLanes - 1) / kLanes;
  const int64_t floats = (call.from.cells() + call.to.cells() + call.from.width) * kLanes;
  const bool parallel = call.maps * (call.from.cells() + call.to.cells()) >= kParallelValues;
  const Scratch scratch(floats, parallel);
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t block = 0; block < blocks; ++block)
    resample_item<T>(call, rows, columns, block, scratch.mine());
}
