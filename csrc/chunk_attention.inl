// Kernel of chunk_attention.cpp, compiled by foreach_isa.h: the online softmax (arXiv 1805.02867)
// of cached_attention.inl, each query over the first keys of its block's list.
#include "attention.inl"

// The block's scores, weights and part of the sums.
template <typename T>
void attend_keys(const ChunkAttention &call, int64_t row, int64_t group, const QueryBlock &queries,
                 const KeyBlock &keys, int64_t total, AttentionScratch &scratch) {
  const int64_t words = words_of<T>(call.width), vectors = vectors_of<T>(call.width);
  const T *k[kBlockKeys], *v[kBlockKeys];
  for (int64_t i = 0; i < keys.count; ++i) {
    k[i] = token_row<T>(call.k, call.k_strides, row, group, keys.first + i);
    v[i] = token_row<T>(call.v, call.v_strides, row, group, keys.first + i);
  }
  pack_keys(k, keys.count, call.width, scratch.packed);
  const Product scores{
      scratch.queries, words,      scratch.packed, words,   (keys.count + kLanes - 1) / kLanes,
      scratch.scores,  kBlockKeys, queries.count,  nullptr, call.scale * kScoreUnit<T>};
  multiply<kPairs<T>>(scores, [] {});
  for (int64_t m = 0; m < queries.count; ++m) {
    const int64_t seen = seen_keys(call.sequence, queries, queries.first + m, total) - keys.before;
    for (int64_t i = seen < 0 ? 0 : seen; i < keys.count; ++i)
      scratch.scores[m * kBlockKeys + i] = -std::numeric_limits<float>::infinity();
  }
  softmax_block<T>(keys.count, queries.count, scratch);
  pack_values(v, keys.count, call.width, scratch.packed);
  const Product sums{scratch.scores,
                     kBlockKeys,
                     scratch.packed,
                     kPairs<T> ? (keys.count + 1) / 2 : keys.count,
                     vectors,
                     scratch.sums,
                     vectors * kLanes,
                     queries.count,
                     keys.before ? scratch.factor : nullptr,
                     1.0f};
  multiply<kPairs<T>>(sums, [] {});
}

template <typename T>
void attend_block(const ChunkAttention &call, int64_t row, int64_t head, const QueryBlock &queries,
                  const std::vector<KeyBlock> &keys, AttentionScratch &scratch) {
  const int64_t vectors = vectors_of<T>(call.width), group = head / (call.heads / call.groups);
  float *lse = call.lse + (row * call.heads + head) * call.sequence.length + queries.first;
  const int64_t total = keys.empty() ? 0 : keys.back().before + keys.back().count;
  copy_words(token_row<T>(call.q, call.q_strides, row, head, queries.first), call.q_strides[2],
             queries.count, call.width, scratch.queries);
  for (int64_t m = 0; m < queries.count; ++m) {
    scratch.largest[m] = -std::numeric_limits<float>::infinity();
    scratch.total[m] = 0;
  }
  for (const KeyBlock &block : keys)
    attend_keys<T>(call, row, group, queries, block, total, scratch);
  for (int64_t m = 0; m < queries.count; ++m) {
    T *out = token_row<T>(call.out, call.out_strides, row, head, queries.first + m);
    if (total)
      write_row(scratch.sums + m * vectors * kLanes, scratch.total[m], call.width, out);
    else
      for_vectors(call.width, [&](int64_t i, int64_t n) { store_n(out + i, Floats{}, n); });
    lse[m] = scratch.largest[m] / kScoreUnit<T> + std::log(scratch.total[m]);
  }
}

template <typename T>
void attend_all(const ChunkAttention &call, const std::vector<QueryBlock> &blocks, bool parallel) {
  const int64_t rows = call.sequence.batch, count = static_cast<int64_t>(blocks.size());
#pragma omp parallel for collapse(3) schedule(dynamic, 4) if (parallel)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = 0; head < call.heads; ++head)
      for (int64_t i = 0; i < count; ++i) {
        key_blocks(call.sequence, row, blocks[i], kBlockKeys, key_list);
        attend_block<T>(call, row, head, blocks[i], key_list, attention_scratch);
      }
}
