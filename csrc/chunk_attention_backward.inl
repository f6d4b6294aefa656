// Kernel of chunk_attention_backward.cpp, compiled by foreach_isa.h. With P the weights, g the
// gradient of out and l that of the log denominators:
//
//   D = g v^T    S = scale P (D - sum_d g out + l)    dq = S k    dk = S^T q    dv = P^T g
//
// A thread has all queries of a key head, one block after the other, so that sums keep their order.
#include "attention.inl"
#include "blocks.inl"

// Queries m and m + 1 (or m alone) of 16 keys from `key` on, as words that run along the queries.
template <typename T>
VIDEOAR_INLINE Words query_words(const float *x, int64_t m, int64_t count, int64_t key) {
  if constexpr (!kPairs<T>)
    return load_words(x + m * kBlockKeys + key);
  const Words even = bf16_words(load(x + m * kBlockKeys + key));
  return m + 1 < count ? even | bf16_words(load(x + (m + 1) * kBlockKeys + key)) << 16 : even;
}

// Where rows of `x` are queries, rows of the result are keys, kBlockRows words apart.
template <typename T>
void transpose_weights(const float *x, int64_t count, int64_t keys, float *out) {
  constexpr int64_t kStep = kPairs<T> ? 2 : 1;
  for (int64_t first = 0; first * kStep < count; first += kLanes)
    for (int64_t key = 0; key < keys; key += kLanes) {
      Floats tile[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t m = (first + i) * kStep;
        tile[i] = m < count ? as_floats(query_words<T>(x, m, count, key)) : Floats{};
      }
      transpose(tile);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i)
        store(out + (key + i) * kBlockRows + first, tile[i]);
    }
}

// Scores and D, in place, to P and S; both 0 for what a query does not see. S then as T, too.
template <typename T>
void weights_of_block(const ChunkAttentionBackward &backward, const QueryBlock &queries,
                      const KeyBlock &keys, int64_t total, BackwardScratch &scratch) {
  const ChunkAttention &call = backward.call;
  const int64_t padded = (keys.count + kLanes - 1) / kLanes * kLanes;
  float numbers[kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    numbers[lane] = static_cast<float>(lane);
  const Floats lanes = load(numbers);
  for (int64_t m = 0; m < queries.count; ++m) {
    const int64_t all = seen_keys(call.sequence, queries, queries.first + m, total) - keys.before;
    const int64_t seen = std::min(all, keys.count);
    float *weights = scratch.weights + m * kBlockKeys, *grads = scratch.grads + m * kBlockKeys;
    const float lse = scratch.lse[m] * kScoreUnit<T>, delta = scratch.delta[m];
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Floats limit = broadcast(static_cast<float>(seen - i));
      const Floats p = lanes < limit ? weight_of<T>(load(weights + i) - lse) : Floats{};
      const Floats s = p * (load(grads + i) - delta) * call.scale;
      store(weights + i, p);
      store(grads + i, s);
    }
  }
}

// S as rows of T, in place.
template <typename T> void narrow_rows(int64_t count, int64_t keys, float *x) {
  if constexpr (kPairs<T>)
    for (int64_t m = 0; m < count; ++m)
      for (int64_t i = 0; i < keys; i += kLanes)
        store(reinterpret_cast<bf16 *>(x + m * kBlockKeys) + i, load(x + m * kBlockKeys + i));
}

// What a block of queries owes to a block of keys: adds to sums (dq) and to the sums of the keys.
template <typename T>
void block_gradients(const ChunkAttentionBackward &backward, int64_t row, int64_t group,
                     const QueryBlock &queries, const KeyBlock &keys, int64_t total, float *sums_k,
                     float *sums_v, BackwardScratch &scratch) {
  const ChunkAttention &call = backward.call;
  const int64_t words = words_of<T>(call.width), vectors = vectors_of<T>(call.width);
  const int64_t columns = (keys.count + kLanes - 1) / kLanes, stride = vectors * kLanes;
  const int64_t steps_q = kPairs<T> ? (queries.count + 1) / 2 : queries.count;
  const int64_t steps_k = kPairs<T> ? (keys.count + 1) / 2 : keys.count;
  const T *k[kBlockKeys], *v[kBlockKeys];
  for (int64_t i = 0; i < keys.count; ++i) {
    k[i] = token_row<T>(call.k, call.k_strides, row, group, keys.first + i);
    v[i] = token_row<T>(call.v, call.v_strides, row, group, keys.first + i);
  }
  const auto product = [&](const float *a, int64_t stride_a, const float *b, int64_t steps,
                           int64_t width, float *c, int64_t stride_c, int64_t rows, bool adds,
                           float after) {
    multiply<kPairs<T>>(Product{a, stride_a, b, steps, width, c, stride_c, rows,
                                adds ? scratch.ones : nullptr, after},
                        [] {});
  };
  pack_keys(k, keys.count, call.width, scratch.packed);
  product(scratch.queries, words, scratch.packed, words, columns, scratch.weights, kBlockKeys,
          queries.count, false, call.scale * kScoreUnit<T>);
  pack_keys(v, keys.count, call.width, scratch.packed);
  product(scratch.grad_out, words, scratch.packed, words, columns, scratch.grads, kBlockKeys,
          queries.count, false, 1.0f);
  weights_of_block<T>(backward, queries, keys, total, scratch);

  transpose_weights<T>(scratch.weights, queries.count, keys.count, scratch.transposed);
  product(scratch.transposed, kBlockRows, scratch.packed_grad_out, steps_q, vectors,
          sums_v + keys.first * stride, stride, keys.count, true, 1.0f);
  transpose_weights<T>(scratch.grads, queries.count, keys.count, scratch.transposed);
  product(scratch.transposed, kBlockRows, scratch.packed_queries, steps_q, vectors,
          sums_k + keys.first * stride, stride, keys.count, true, 1.0f);
  narrow_rows<T>(queries.count, keys.count, scratch.grads);
  pack_values(k, keys.count, call.width, scratch.packed);
  product(scratch.grads, kBlockKeys, scratch.packed, steps_k, vectors, scratch.sums, stride,
          queries.count, keys.before > 0, 1.0f);
}

// The rows of a block of queries: as words, packed, and what the softmax needs of them.
template <typename T>
void load_queries(const ChunkAttentionBackward &backward, int64_t row, int64_t head,
                  const QueryBlock &queries, BackwardScratch &scratch) {
  const ChunkAttention &call = backward.call;
  const int64_t at = (row * call.heads + head) * call.sequence.length + queries.first;
  const T *q[kBlockRows], *g[kBlockRows];
  for (int64_t m = 0; m < queries.count; ++m) {
    q[m] = token_row<T>(call.q, call.q_strides, row, head, queries.first + m);
    g[m] = token_row<T>(backward.grad_out, backward.grad_out_strides, row, head, queries.first + m);
    const T *out = token_row<T>(call.out, call.out_strides, row, head, queries.first + m);
    Floats dot{};
    for_vectors(call.width, [&](int64_t i, int64_t n) {
      dot = fma(load_n(g[m] + i, n), load_n(out + i, n), dot);
    });
    scratch.lse[m] = call.lse[at + m];
    scratch.delta[m] = sum(dot) - (backward.grad_lse ? backward.grad_lse[at + m] : 0.0f);
  }
  copy_words(q[0], call.q_strides[2], queries.count, call.width, scratch.queries);
  copy_words(g[0], backward.grad_out_strides[2], queries.count, call.width, scratch.grad_out);
  pack_values(q, queries.count, call.width, scratch.packed_queries);
  pack_values(g, queries.count, call.width, scratch.packed_grad_out);
}

template <typename T>
void write_rows(const float *sums, int64_t width, void *out, const Axes &strides, int64_t row,
                int64_t head, int64_t first, int64_t count) {
  const int64_t stride = vectors_of<T>(width) * kLanes;
  for (int64_t m = 0; m < count; ++m)
    write_row(sums + m * stride, 1.0f, width, token_row<T>(out, strides, row, head, first + m));
}

// All gradients of a key head: `sums` has twice length * vectors * kLanes floats.
template <typename T>
void head_gradients(const ChunkAttentionBackward &backward, const std::vector<QueryBlock> &blocks,
                    int64_t row, int64_t group, float *sums, BackwardScratch &scratch) {
  const ChunkAttention &call = backward.call;
  const int64_t length = call.sequence.length, share = call.heads / call.groups;
  const int64_t size = length * vectors_of<T>(call.width) * kLanes;
  for (int64_t i = 0; i < 2 * size; ++i)
    sums[i] = 0;
  for (float &one : scratch.ones)
    one = 1;
  for (int64_t head = group * share; head < (group + 1) * share; ++head)
    for (const QueryBlock &queries : blocks) {
      key_blocks(call.sequence, row, queries, kBlockKeys, key_list);
      const int64_t total = key_list.empty() ? 0 : key_list.back().before + key_list.back().count;
      load_queries<T>(backward, row, head, queries, scratch);
      for (const KeyBlock &keys : key_list)
        block_gradients<T>(backward, row, group, queries, keys, total, sums, sums + size, scratch);
      if (!total)
        for (int64_t i = 0; i < queries.count * size / length; ++i)
          scratch.sums[i] = 0;
      write_rows<T>(scratch.sums, call.width, backward.grad_q, backward.grad_q_strides, row, head,
                    queries.first, queries.count);
    }
  write_rows<T>(sums, call.width, backward.grad_k, backward.grad_k_strides, row, group, 0, length);
  write_rows<T>(sums + size, call.width, backward.grad_v, backward.grad_v_strides, row, group, 0,
                length);
}

template <typename T>
void all_gradients(const ChunkAttentionBackward &backward, const std::vector<QueryBlock> &blocks,
                   const Scratch &sums, bool parallel) {
  const int64_t rows = backward.call.sequence.batch, groups = backward.call.groups;
#pragma omp parallel for collapse(2) schedule(dynamic) if (parallel)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t group = 0; group < groups; ++group)
      head_gradients<T>(backward, blocks, row, group, sums.mine(), backward_scratch);
}
