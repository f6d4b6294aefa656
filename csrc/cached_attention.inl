// Kernel of cached_attention.cpp, compiled by foreach_isa.h.
//
// Both products are those of packed_product.inl: for the scores columns are keys and words run
// along D; for the output columns are channels and words run along the keys. The softmax is the
// online one (arXiv 1805.02867): blocks of keys in order, sums rescaled when the largest score
// grows.
#include "attention.inl"

#include "few_queries.inl"

// Asks for cache rows while something else is computed: `times` calls fetch all of them.
template <typename T> class Prefetch {
public:
  Prefetch(const T *const *rows, int64_t count, int64_t width, int64_t times)
      : row_(rows), end_(rows + count), width_(width), share_((count + times - 1) / times) {}

  VIDEOAR_INLINE void operator()() {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t i = 0; i < share_ && row_ < end_; ++i, ++row_)
      for (int64_t channel = 0; channel < width_; channel += kLine)
        prefetch(*row_ + channel);
  }

private:
  const T *const *row_, *const *end_;
  int64_t width_, share_;
};

// Walks over the cache rows that a list of segments names.
struct Cursor {
  const int32_t *segment; // (start, length)
  int64_t used;

  int64_t next() {
    while (used == segment[1])
      segment += 2, used = 0;
    return segment[0] + used++;
  }
};

// Where query `query` of a key head begins: queries of its heads follow each other.
VIDEOAR_INLINE int64_t query_offset(const CachedAttention &call, const Axes &strides, int64_t row,
                                    int64_t group, int64_t query) {
  const int64_t head = group * (call.heads / call.groups) + query / call.length;
  return row * strides[0] + head * strides[1] + query % call.length * strides[2];
}

template <typename T>
void zero_rows(const CachedAttention &call, int64_t row, int64_t group, int64_t first,
               int64_t count) {
  for (int64_t m = first; m < first + count; ++m) {
    T *out = static_cast<T *>(call.out) + query_offset(call, call.out_strides, row, group, m);
    for_vectors(call.width, [&](int64_t i, int64_t n) { store_n(out + i, Floats{}, n); });
  }
}

// Where the keys and values of a block of cache rows are.
template <typename T> struct KeyBlock {
  const T *k[kBlockKeys], *v[kBlockKeys];
  int64_t keys;

  void locate(const CachedAttention &call, int64_t row, int64_t group, Cursor &cursor,
              int64_t count) {
    const Axes &strides_k = call.k_strides, &strides_v = call.v_strides;
    const T *first_k =
        static_cast<const T *>(call.k_cache) + row * strides_k[0] + group * strides_k[1];
    const T *first_v =
        static_cast<const T *>(call.v_cache) + row * strides_v[0] + group * strides_v[1];
    for (keys = 0; keys < count; ++keys) {
      const int64_t slot = cursor.next();
      k[keys] = first_k + slot * strides_k[2];
      v[keys] = first_v + slot * strides_v[2];
    }
    if (kPairs<T> && keys % 2)
      v[keys] = zeros;
  }

  static constexpr T zeros[kMaxWidth] = {};
};

// Scores and weights of one block of keys, and their sum of values. What is needed next is fetched
// during the products: the values, then the keys of `following`.
template <typename T>
void attend_block(const KeyBlock<T> &block, const KeyBlock<T> &following, int64_t width,
                  int64_t count, float scale, bool is_first, AttentionScratch &scratch) {
  const int64_t keys = block.keys, columns = (keys + kLanes - 1) / kLanes;
  const int64_t words = words_of<T>(width), vectors = vectors_of<T>(width);
  pack_keys(block.k, keys, width, scratch.packed);
  Product product{scratch.queries, words,      scratch.packed, words,   columns,
                  scratch.scores,  kBlockKeys, count,          nullptr, scale * kScoreUnit<T>};
  multiply<kPairs<T>>(product, Prefetch<T>(block.v, keys, width, product.blocks()));
  softmax_block<T>(keys, count, scratch);
  pack_values(block.v, keys, width, scratch.packed);
  const int64_t steps = kPairs<T> ? (keys + 1) / 2 : keys;
  product = {scratch.scores,
             kBlockKeys,
             scratch.packed,
             steps,
             vectors,
             scratch.sums,
             vectors * kLanes,
             count,
             is_first ? nullptr : scratch.factor,
             1.0f};
  multiply<kPairs<T>>(product, Prefetch<T>(following.k, following.keys, width, product.blocks()));
}

// As attend_block, for few queries, interleaved.
template <typename T>
void attend_block_few(const KeyBlock<T> &block, const KeyBlock<T> &following, int64_t width,
                      int64_t count, float scale, bool is_first, AttentionScratch &scratch) {
  const int64_t keys = block.keys, steps = kPairs<T> ? (keys + 1) / 2 : keys;
  score_keys(block.k, keys, width, count, scale * kScoreUnit<T>, scratch,
             Prefetch<T>(block.v, keys, width, (keys + kLanes - 1) / kLanes));
  softmax_block<T>(keys, count, scratch);
  add_block_values(
      block.v, steps, width, count, is_first, scratch,
      Prefetch<T>(following.k, following.keys, width, prefetches<T>(steps, width, count)));
}

// The queries first .. first + count of a key head against the `keys` rows of its segments.
template <typename T>
void attend(const CachedAttention &call, int64_t row, int64_t group, int64_t first, int64_t count,
            int64_t keys, AttentionScratch &scratch) {
  const int64_t words = words_of<T>(call.width), vectors = vectors_of<T>(call.width);
  for (int64_t m = 0; m < count; ++m) {
    const T *query =
        static_cast<const T *>(call.q) + query_offset(call, call.q_strides, row, group, first + m);
    for (int64_t i = 0; i < words; i += kLanes)
      store_words(scratch.queries + m * words + i, row_words(query, i, call.width));
    scratch.largest[m] = -std::numeric_limits<float>::infinity();
    scratch.total[m] = 0;
  }
  Cursor cursor{call.segments + row * call.segments_of_row * 2, 0};
  KeyBlock<T> blocks[2];
  blocks[0].locate(call, row, group, cursor, std::min(keys, kBlockKeys));
  const bool few = count <= kFewQueries;
  if (few) {
    // All at once: work on a tile is too long for the processor to see the next one's keys coming.
    Prefetch<T>(blocks[0].k, blocks[0].keys, call.width, 1)();
    interleave_queries<T>(call.width, count, scratch);
  }
  for (int64_t done = 0, i = 0; done < keys; i = 1 - i) {
    const int64_t rest = keys - done - blocks[i].keys;
    blocks[1 - i].locate(call, row, group, cursor, std::min(rest, kBlockKeys));
    const auto attend_keys = few ? attend_block_few<T> : attend_block<T>;
    attend_keys(blocks[i], blocks[1 - i], call.width, count, call.scale, done == 0, scratch);
    done += blocks[i].keys;
  }
  for (int64_t m = 0; m < count; ++m)
    write_row(scratch.sums + m * vectors * kLanes, scratch.total[m], call.width,
              static_cast<T *>(call.out) +
                  query_offset(call, call.out_strides, row, group, first + m));
}

template <typename T> void attend_all(const CachedAttention &call, bool parallel) {
  const int64_t queries = call.heads / call.groups * call.length;
  const int64_t blocks = (queries + kBlockRows - 1) / kBlockRows;
#pragma omp parallel for collapse(3) schedule(dynamic) if (parallel)
  for (int64_t row = 0; row < call.batch; ++row)
    for (int64_t group = 0; group < call.groups; ++group)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * kBlockRows, rest = queries - first;
        const int64_t count = rest < kBlockRows ? rest : kBlockRows;
        const int64_t keys = keys_of(call, row);
        if (keys)
          attend<T>(call, row, group, first, count, keys, attention_scratch);
        else
          zero_rows<T>(call, row, group, first, count);
      }
}
