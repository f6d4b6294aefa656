// Kernel of packed_linear.cpp, compiled by foreach_isa.h.
//
// A thread has neighbouring panels and goes through their weights once for each chunk of rows, in
// the order they lie in memory: kSteps words of each output at a time, for all rows. Processors
// fetch ahead only what is read in one go, so while one block of weights is multiplied the next is
// asked for.
#include "packed_product.inl"

// A block of a panel's weights.
struct WeightBlock {
  const float *words; // [steps, kPanel]
  int64_t steps;
};

constexpr int64_t kLineFloats = 16; // of a cache line

// Asks for the cache lines from `next` to `end` while something else is computed.
struct Ahead {
  const float *next, *end;
  int lines; // a step

  VIDEOAR_INLINE void step() {
    for (int i = 0; i < lines && next < end; ++i, next += kLineFloats)
      prefetch(next);
  }
};

constexpr int kPanelVectors = kPanel / kLanes;
// Vectors of a panel whose sums are in registers together. (Of one lane where kLanes is 1.)
constexpr int kGroup = kColumns < kPanelVectors ? kColumns : kPanelVectors;

// sum + x w by lane, for one word: a float, or two neighbouring bf16.
template <typename T> VIDEOAR_INLINE Floats add_word(const T *x, Words w, Floats sum) {
  if constexpr (sizeof(T) == 4 || kPairs<T>) {
    return multiply_add<kPairs<T>>(x, w, sum);
  } else {
    const auto factor = [&](int i) { return as_floats(Words{} + (uint32_t{x[i].bits} << 16)); };
    sum = fma(factor(0), as_floats(w << 16), sum);
    return fma(factor(1), as_floats(w & 0xFFFF0000u), sum);
  }
}

// ROWS rows against the vectors from `first` on of a block.
template <typename T, int ROWS>
VIDEOAR_NOINLINE void add_rows(const T *x, int64_t in, const WeightBlock &block, int first,
                               Ahead ahead, bool is_first, float *sums) {
  constexpr int kInputs = kInputsOfWord<T>;
  sums += first * kLanes;
  Floats sum[ROWS][kGroup];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kGroup; ++j)
      sum[i][j] = is_first ? Floats{} : load(sums + i * kPanel + j * kLanes);
  const float *weights = block.words + first * kLanes;
  for (int64_t step = 0; step < block.steps; ++step) {
    Words words[kGroup];
#pragma GCC unroll 4
    for (int j = 0; j < kGroup; ++j)
      words[j] = load_words(weights + step * kPanel + j * kLanes);
    ahead.step();
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kGroup; ++j)
        sum[i][j] = add_word(x + i * in + kInputs * step, words[j], sum[i][j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kGroup; ++j)
      store(sums + i * kPanel + j * kLanes, sum[i][j]);
}

// Of at most ROWS rows, all vectors of a panel.
template <typename T, int ROWS = kRows>
void add_panel(const T *x, int64_t rows, int64_t in, const WeightBlock &block, const Ahead &ahead,
               bool is_first, float *sums) {
  if constexpr (ROWS > 1)
    if (rows < ROWS)
      return add_panel<T, ROWS - 1>(x, rows, in, block, ahead, is_first, sums);
  for (int first = 0; first < kPanelVectors; first += kGroup)
    add_rows<T, ROWS>(x, in, block, first, first ? Ahead{} : ahead, is_first, sums);
}

// All rows against a block, in groups of at most kRows that differ by one row. Each fetches its
// share of the next block.
template <typename T>
void add_block(const T *x, int64_t rows, int64_t in, const WeightBlock &block, const float *next,
               int64_t next_lines, bool is_first, float *sums) {
  const int64_t groups = (rows + kRows - 1) / kRows;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = rows * group / groups, count = rows * (group + 1) / groups - first;
    const int64_t from = next_lines * group / groups, to = next_lines * (group + 1) / groups;
    const Ahead ahead{next + from * kLineFloats, next + to * kLineFloats,
                      static_cast<int>((to - from + block.steps - 1) / block.steps)};
    add_panel(x + first * in, count, in, block, ahead, is_first, sums + first * kPanel);
  }
}

// One panel of `rows` rows of x; `end` is that of all weights.
template <typename T>
void linear_panel(const PackedLinear &call, const T *x, int64_t rows, int64_t panel,
                  const float *end, float *sums, T *y) {
  const int64_t steps = call.in / kInputsOfWord<T>;
  const float *words = static_cast<const float *>(call.weight) + panel * steps * kPanel;
  if (steps == 0)
    std::fill_n(sums, rows * kPanel, 0.0f);
  for (int64_t step = 0; step < steps; step += kSteps) {
    const int64_t count = std::min(kSteps, steps - step);
    const float *next = words + (step + count) * kPanel;
    // The block behind this one, be it the next panel's, up to the end of all weights.
    const int64_t following = std::min(kSteps, (end - next) / kPanel);
    add_block(x + kInputsOfWord<T> * step, rows, call.in, {words + step * kPanel, count}, next,
              following * kPanel / kLineFloats, step == 0, sums);
  }
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t n = 0; n < kPanel; n += kLanes)
      store(y + m * call.out + panel * kPanel + n, load(sums + m * kPanel + n));
}

template <typename T>
void linear_panels(const PackedLinear &call, bool parallel, const Scratch &scratch) {
  const int64_t panels = call.out / kPanel;
  const float *end =
      static_cast<const float *>(call.weight) + call.out * (call.in / kInputsOfWord<T>);
  const auto *x = static_cast<const T *>(call.x);
  auto *y = static_cast<T *>(call.y);
  for (int64_t row = 0; row < call.rows; row += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, call.rows - row);
    const int64_t parts = parallel ? row_parts(panels, rows) : 1;
#pragma omp parallel for collapse(2) schedule(static) if (parallel)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t first = rows * part / parts, last = rows * (part + 1) / parts;
        linear_panel(call, x + (row + first) * call.in, last - first, panel, end, scratch.mine(),
                     y + (row + first) * call.out);
      }
  }
}
