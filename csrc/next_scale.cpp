#include "next_scale.h"

#include <utility>

#include "check.h"
#include "philox.h"
#include "scratch.h"

namespace {

using videoar::Band;

// Below this many sampled bits and accumulated values (about 0.2 ms on one core) waking other
// threads costs more than it saves.
constexpr int64_t kParallelValues = int64_t{1} << 18;

// From codes to the full grid, and from there to the next scale's.
struct NextScaleBands {
  Band up_rows;
  Band up_columns;
  Band next_rows;
  Band next_columns;
};

} // namespace

#define VIDEOAR_KERNEL "next_scale.inl"
#include "foreach_isa.h"

namespace videoar {
namespace {

constexpr auto kBilinear = ResampleMode::bilinear;

void check_sampling(const NextScale &call) {
  VIDEOAR_CHECK(call.scale >= 0 && call.scale < kPhiloxLimit, "scale ", call.scale);
  for (int64_t row = 0; row < call.rows; ++row) {
    const int64_t frame = call.frames ? call.frames[row] : call.frame;
    VIDEOAR_CHECK(frame >= 0 && frame < kPhiloxLimit, "frames[", row, "] = ", frame);
    const float temperature = call.temperatures ? call.temperatures[row] : call.temperature;
    VIDEOAR_CHECK(temperature >= 0, "temperature[", row, "] = ", temperature);
    VIDEOAR_CHECK(temperature == 0 || call.noise || call.seeds, "seeds ", call.seeds, ", noise ",
                  call.noise, ", temperature[", row, "] = ", temperature);
  }
}

} // namespace

void next_scale(const NextScale &call) {
  VIDEOAR_CHECK(call.rows >= 0 && call.num_bits >= 0 && call.num_bits < kPhiloxLimit, "rows ",
                call.rows, ", num_bits ", call.num_bits);
  check_grid("grid", call.grid);
  check_grid("full", call.full);
  check_grid("next", call.next);
  if (call.rows == 0 || call.num_bits == 0)
    return;
  VIDEOAR_CHECK(call.logits && call.accumulator && call.bits && call.sum && call.inputs, "logits ",
                call.logits, ", accumulator ", call.accumulator, ", bits ",
                static_cast<const void *>(call.bits), ", sum ", call.sum, ", inputs ", call.inputs);
  check_sampling(call);
  const BandTable up_rows(call.grid.height, call.full.height, kBilinear);
  const BandTable up_columns(call.grid.width, call.full.width, kBilinear);
  const BandTable next_rows(call.full.height, call.next.height, kBilinear);
  const BandTable next_columns(call.full.width, call.next.width, kBilinear);
  const NextScaleBands bands{up_rows.view(), up_columns.view(), next_rows.view(),
                             next_columns.view()};
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_DISPATCH(next_scale_rows<decltype(element)>(call, bands));
  });
}

} // namespace videoar
