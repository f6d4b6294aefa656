#include "bsq_quantize.h"

#include <algorithm>
#include <utility>

#include "check.h"
#include "scratch.h"

namespace {

using videoar::Band;
using videoar::Grid;

// Below this many values times scales (about 0.2 ms on one core) waking other threads costs more
// than it saves.
constexpr int64_t kParallelValues = int64_t{1} << 19;

struct QuantizeScale {
  Grid grid;
  bool is_full;
  Band down_rows; // full grid to this one, area
  Band down_columns;
  Band up_rows; // and back, bilinear
  Band up_columns;
  Band resize_rows; // full grid to this one, bilinear
  Band resize_columns;
};

struct QuantizePlan {
  const QuantizeScale *scales;
  int64_t num_scales;
  int64_t num_tokens; // cells of all scales
  int64_t max_cells;  // of a scale
  int64_t max_width;
};

} // namespace

#define VIDEOAR_KERNEL "bsq_quantize.inl"
#include "foreach_isa.h"

namespace videoar {
namespace {

constexpr auto kArea = ResampleMode::area;
constexpr auto kBilinear = ResampleMode::bilinear;

// Owns the tables of one scale.
class ScaleTables {
public:
  ScaleTables(const Grid &full, const Grid &grid)
      : grid_(grid), is_full_(grid == full), down_rows_(full.height, grid.height, kArea),
        down_columns_(full.width, grid.width, kArea), up_rows_(grid.height, full.height, kBilinear),
        up_columns_(grid.width, full.width, kBilinear),
        resize_rows_(full.height, grid.height, kBilinear),
        resize_columns_(full.width, grid.width, kBilinear) {}

  QuantizeScale view() const {
    return {grid_,           is_full_,           down_rows_.view(),   down_columns_.view(),
            up_rows_.view(), up_columns_.view(), resize_rows_.view(), resize_columns_.view()};
  }

private:
  Grid grid_;
  bool is_full_;
  BandTable down_rows_, down_columns_, up_rows_, up_columns_, resize_rows_, resize_columns_;
};

} // namespace

void bsq_quantize(const BsqQuantize &call, const std::vector<Grid> &grids) {
  VIDEOAR_CHECK(call.batch >= 0 && call.frames >= 0 && call.num_bits >= 0, "batch ", call.batch,
                ", frames ", call.frames, ", num_bits ", call.num_bits);
  VIDEOAR_CHECK(!grids.empty(), "no grid");
  for (const Grid &grid : grids)
    check_grid("grid", grid);
  if (call.batch == 0 || call.frames == 0 || call.num_bits == 0)
    return;
  VIDEOAR_CHECK(call.x && call.targets && call.bits && call.reconstruction, "x ", call.x,
                ", targets ", static_cast<const void *>(call.targets), ", bits ",
                static_cast<const void *>(call.bits), ", reconstruction ", call.reconstruction);
  std::vector<ScaleTables> tables;
  std::vector<QuantizeScale> scales;
  QuantizePlan plan{nullptr, static_cast<int64_t>(grids.size()), 0, 0, 0};
  tables.reserve(grids.size());
  for (const Grid &grid : grids) {
    tables.emplace_back(grids.back(), grid);
    scales.push_back(tables.back().view());
    plan.num_tokens += grid.cells();
    plan.max_cells = std::max(plan.max_cells, grid.cells());
    plan.max_width = std::max(plan.max_width, grid.width);
  }
  plan.scales = scales.data();
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_DISPATCH(quantize_frames<decltype(element)>(call, plan));
  });
}

} // namespace videoar
