// Attention of few queries to a block of keys, for kernels compiled by foreach_isa.h: term by term
// the sums of packed_product.inl, so that results are the same bits, from rows that pass through
// registers where they are instead of being packed. Needs attention.inl.

constexpr int kScoreRows = 8; // queries that share keys in registers
constexpr int kValueRows = 4; // by kValueColumns: sums in registers
constexpr int kValueColumns = 4;
constexpr int64_t kPrefetchSteps = 8; // of a product, between two requests for what comes next

// Calls function(constant, m) for groups of queries from m on: a power of two of them, so that few
// forms are compiled. What is too many in the last group is computed and not read.
template <int MOST, typename Function>
VIDEOAR_INLINE void for_groups(int64_t count, Function function) {
  for (int64_t m = 0; m < count; m += MOST) {
    const int64_t rest = count - m;
    if (MOST > 4 && rest > 4)
      function(std::integral_constant<int, MOST>(), m);
    else if (rest > 2)
      function(std::integral_constant<int, 4>(), m);
    else if (rest == 2)
      function(std::integral_constant<int, 2>(), m);
    else
      function(std::integral_constant<int, 1>(), m);
  }
}

// Queries as score_rows reads them, [groups, words, queries of the group], in place of packed keys.
template <typename T>
void interleave_queries(int64_t width, int64_t count, AttentionScratch &scratch) {
  const int64_t words = words_of<T>(width);
  for_groups<kScoreRows>(count, [&](auto rows, int64_t m) {
    float *out = scratch.packed + m * words;
    for (int64_t word = 0; word < words; ++word)
      for (int64_t i = m; i < m + rows; ++i, ++out)
        *out = i < count ? scratch.queries[i * words + word] : 0.0f;
  });
}

// Scores of ROWS interleaved queries to the keys of `row`.
template <typename T, int ROWS>
void score_rows(const T *const (&row)[kLanes], const float *queries, int64_t width, float scale,
                float *scores) {
  Floats sums[ROWS] = {};
  const int64_t words = words_of<T>(width);
  for (int64_t i = 0; i < words; i += kLanes, queries += kLanes * ROWS) {
    Words tile[kLanes];
    load_columns(row, i, width, tile);
#pragma GCC unroll 16
    for (int word = 0; word < kLanes; ++word)
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; ++m)
        sums[m] = multiply_add<kPairs<T>>(queries + word * ROWS + m, tile[word], sums[m]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m)
    store(scores + m * kBlockKeys, sums[m] * scale);
}

// Scores of all queries to a block of keys; behind the last key it is repeated.
template <typename T, typename Meanwhile>
void score_keys(const T *const *rows, int64_t keys, int64_t width, int64_t count, float scale,
                AttentionScratch &scratch, Meanwhile meanwhile) {
  for (int64_t first = 0; first < keys; first += kLanes) {
    meanwhile();
    const T *row[kLanes];
    for (int64_t key = 0; key < kLanes; ++key)
      row[key] = rows[std::min(first + key, keys - 1)];
    for_groups<kScoreRows>(count, [&](auto group, int64_t m) {
      score_rows<T, group>(row, scratch.packed + m * words_of<T>(width), width, scale,
                           scratch.scores + m * kBlockKeys + first);
    });
  }
}

// The vectors n .. n + COLUMNS that pack_values makes of one row, or of two where words are pairs.
template <typename T, int COLUMNS>
VIDEOAR_INLINE void value_words(const T *const *rows, int64_t n, int64_t width,
                                Words (&words)[COLUMNS]) {
  if constexpr (kPairs<T>) {
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; j += 2)
      interleave(row_words(rows[0], (n + j) * kLanes / 2, width),
                 row_words(rows[1], (n + j) * kLanes / 2, width), words[j], words[j + 1]);
  } else {
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j)
      words[j] = row_words(rows[0], (n + j) * kLanes, width);
  }
}

// out = out * factor + weights values, for ROWS queries and COLUMNS vectors from n on. `factor`
// null: out starts at 0.
template <typename T, int ROWS, int COLUMNS, typename Meanwhile>
void add_values(const T *const *rows, int64_t steps, int64_t width, int64_t n, const float *weights,
                const float *factor, float *out, Meanwhile &meanwhile) {
  const int64_t stride = vectors_of<T>(width) * kLanes;
  out += n * kLanes;
  Floats sums[ROWS][COLUMNS];
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j)
      sums[i][j] = factor ? load(out + i * stride + j * kLanes) * factor[i] : Floats{};
  for (int64_t first = 0; first < steps; first += kPrefetchSteps) {
    meanwhile();
    const int64_t end = std::min(first + kPrefetchSteps, steps);
    for (int64_t step = first; step < end; ++step, rows += kPairs<T> ? 2 : 1) {
      Words words[COLUMNS];
      value_words(rows, n, width, words);
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; ++j)
          sums[i][j] =
              multiply_add<kPairs<T>>(weights + i * kBlockKeys + step, words[j], sums[i][j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j)
      store(out + i * stride + j * kLanes, sums[i][j]);
}

// How often, at least, add_block_values asks for what comes next.
template <typename T> int64_t prefetches(int64_t steps, int64_t width, int64_t count) {
  const int64_t columns = std::max<int64_t>(vectors_of<T>(width) / kValueColumns, 1);
  const int64_t groups = std::max<int64_t>(count / kValueRows, 1);
  return (steps + kPrefetchSteps - 1) / kPrefetchSteps * columns * groups;
}

// Adds the weighted values of a block to the sums of all queries. Where words are pairs, an odd
// number of rows is followed by one of zeros.
template <typename T, typename Meanwhile>
void add_block_values(const T *const *rows, int64_t steps, int64_t width, int64_t count,
                      bool is_first, AttentionScratch &scratch, Meanwhile meanwhile) {
  const int64_t vectors = vectors_of<T>(width);
  const auto add_columns = [&](auto columns, int64_t n) {
    for_groups<kValueRows>(count, [&](auto group, int64_t m) {
      add_values<T, group, columns>(rows, steps, width, n, scratch.scores + m * kBlockKeys,
                                    is_first ? nullptr : scratch.factor + m,
                                    scratch.sums + m * vectors * kLanes, meanwhile);
    });
  };
  int64_t n = 0;
  for (; n + kValueColumns <= vectors; n += kValueColumns)
    add_columns(std::integral_constant<int, kValueColumns>(), n);
  for (constexpr int kLast = kPairs<T> ? 2 : 1; n < vectors; n += kLast)
    add_columns(std::integral_constant<int, kLast>(), n);
}
