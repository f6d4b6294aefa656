// Kernel of packed_linear.cpp, compiled by foreach_isa.h.
//
// A thread has neighbouring panels and goes through their weights once for each chunk of rows, in
// the order they lie in memory: kSteps pairs of inputs at a time, for all rows. Processors fetch
// ahead only what is read in one go, so while one block of weights is multiplied the next is asked
// for.
#include "packed_product.inl"

// A block of a panel's weights, and what is to be fetched meanwhile (null: nothing).
struct WeightBlock {
  const float *words; // [steps, kPanel] pairs of inputs
  const float *next;
  int64_t steps;
};

#if VIDEOAR_ISA == 3
constexpr int kPanelVectors = kPanel / kLanes;

// ROWS rows against a block; `lines` of the panel's vectors are fetched, from `line` on.
template <int ROWS>
void add_rows(const uint16_t *x, int64_t in, const WeightBlock &block, int line, int lines,
              bool is_first, float *sums) {
  Floats sum[ROWS][kPanelVectors];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j)
      sum[i][j] = is_first ? Floats{} : load(sums + i * kPanel + j * kLanes);
  for (int64_t step = 0; step < block.steps; ++step) {
    Words words[kPanelVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j)
      words[j] = load_words(block.words + step * kPanel + j * kLanes);
    for (int j = line; j < line + lines; ++j)
      prefetch(block.next + step * kPanel + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kPanelVectors; ++j)
        sum[i][j] = multiply_add<true>(x + i * in + 2 * step, words[j], sum[i][j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kPanelVectors; ++j)
      store(sums + i * kPanel + j * kLanes, sum[i][j]);
}

// All rows against a block, in groups of at most kRows that differ by one row.
inline void add_block(const uint16_t *x, int64_t rows, int64_t in, const WeightBlock &block,
                      bool is_first, float *sums) {
  const int64_t groups = (rows + kRows - 1) / kRows;
  // The first groups fetch the vectors of the next block, as evenly as there are groups.
  const bool ahead = block.next && rows > kFewRows;
  const int lines = groups >= kPanelVectors ? 1 : (kPanelVectors + groups - 1) / groups;
  int line = 0;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = rows * group / groups, count = rows * (group + 1) / groups - first;
    const int more = ahead ? std::min(lines, kPanelVectors - line) : 0;
    const uint16_t *part = x + first * in;
    float *out = sums + first * kPanel;
    switch (count) {
    case 6:
      add_rows<6>(part, in, block, line, more, is_first, out);
      break;
    case 5:
      add_rows<5>(part, in, block, line, more, is_first, out);
      break;
    case 4:
      add_rows<4>(part, in, block, line, more, is_first, out);
      break;
    case 3:
      add_rows<3>(part, in, block, line, more, is_first, out);
      break;
    case 2:
      add_rows<2>(part, in, block, line, more, is_first, out);
      break;
    default:
      add_rows<1>(part, in, block, line, more, is_first, out);
    }
    line += more;
  }
}
#else
// What weights that were packed for the widest set give under another one (a test's set_isa).
inline void add_block(const uint16_t *x, int64_t rows, int64_t in, const WeightBlock &block,
                      bool is_first, float *sums) {
  const auto value = [](uint16_t bits) {
    const uint32_t word = uint32_t{bits} << 16;
    float result;
    std::memcpy(&result, &word, sizeof result);
    return result;
  };
  const auto *weights = reinterpret_cast<const uint16_t *>(block.words);
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t n = 0; n < kPanel; ++n) {
      float sum = is_first ? 0.0f : sums[m * kPanel + n];
      for (int64_t i = 0; i < 2 * block.steps; ++i)
        sum += value(x[m * in + i]) * value(weights[(i / 2 * kPanel + n) * 2 + i % 2]);
      sums[m * kPanel + n] = sum;
    }
}
#endif

// One panel of `rows` rows of x; `end` is that of all weights.
inline void linear_panel(const PackedLinear &call, const uint16_t *x, int64_t rows, int64_t panel,
                         const float *end, float *sums, uint16_t *y) {
  const int64_t steps = call.in / 2;
  const float *words = reinterpret_cast<const float *>(call.weight) + panel * steps * kPanel;
  if (steps == 0)
    std::fill_n(sums, rows * kPanel, 0.0f);
  for (int64_t step = 0; step < steps; step += kSteps) {
    const int64_t count = std::min(kSteps, steps - step);
    const float *next = words + (step + count) * kPanel;
    // The block behind this one may be shorter: never ask for what lies behind the end.
    const WeightBlock block{words + step * kPanel, next + count * kPanel <= end ? next : nullptr,
                            count};
    add_block(x + 2 * step, rows, call.in, block, step == 0, sums);
  }
  auto *out = reinterpret_cast<bf16 *>(y);
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t n = 0; n < kPanel; n += kLanes)
      store_n(out + m * call.out + panel * kPanel + n, load(sums + m * kPanel + n), kLanes);
}

inline void linear_panels(const PackedLinear &call, bool parallel, const Scratch &scratch) {
  const int64_t panels = call.out / kPanel;
  const float *end = reinterpret_cast<const float *>(call.weight) + call.out * (call.in / 2);
  for (int64_t row = 0; row < call.rows; row += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, call.rows - row);
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t panel = 0; panel < panels; ++panel)
      linear_panel(call, call.x + row * call.in, rows, panel, end, scratch.mine(),
                   call.y + row * call.out);
  }
}
