#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"
#include "chunk_attention.h"
#include "scratch.h"

namespace videoar {
namespace {

// What a thread works on besides the sums of its key head; as `AttentionScratch`.
struct alignas(64) BackwardScratch {
  float queries[kBlockRows * kMaxWidth], packed_queries[kBlockRows * kMaxWidth];
  float grad_out[kBlockRows * kMaxWidth], packed_grad_out[kBlockRows * kMaxWidth];
  float packed[kBlockKeys * kMaxWidth];
  float weights[kBlockRows * kBlockKeys], grads[kBlockRows * kBlockKeys];
  float transposed[kBlockKeys * kBlockRows];
  float sums[kBlockRows * kMaxWidth];
  float lse[kBlockRows], delta[kBlockRows], ones[kBlockKeys];
};
thread_local BackwardScratch backward_scratch;
thread_local std::vector<KeyBlock> key_list;

// Floats that a row of sums may take: channels in whole pairs of the widest vectors.
int64_t sums_width(int64_t width) { return (width + 31) / 32 * 32; }

} // namespace
} // namespace videoar

#define VIDEOAR_KERNEL "chunk_attention_backward.inl"
#include "foreach_isa.h"

namespace videoar {

void chunk_attention_backward(const ChunkAttentionBackward &backward) {
  const ChunkAttention &call = backward.call;
  check_chunk_attention(call);
  if (call.sequence.batch == 0 || call.sequence.length == 0)
    return;
  VIDEOAR_CHECK(backward.grad_out && backward.grad_q && backward.grad_k && backward.grad_v,
                "grad_out ", backward.grad_out, ", grad_q ", backward.grad_q, ", grad_k ",
                backward.grad_k, ", grad_v ", backward.grad_v);
  for (const Axes &strides : {backward.grad_out_strides, backward.grad_q_strides,
                              backward.grad_k_strides, backward.grad_v_strides})
    VIDEOAR_CHECK(strides[3] == 1, "channels ", strides[3], " elements apart");
  const bool parallel = worth_threads(call);
  const Scratch sums(2 * call.sequence.length * sums_width(call.width), parallel);
  const std::vector<QueryBlock> blocks = query_blocks(call.sequence, kBlockRows);
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_DISPATCH(all_gradients<decltype(element)>(backward, blocks, sums, parallel));
  });
}

} // namespace videoar
