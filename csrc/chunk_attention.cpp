#include "chunk_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"

namespace videoar {
namespace {

thread_local AttentionScratch attention_scratch;
thread_local std::vector<KeyBlock> key_list;

} // namespace
} // namespace videoar

#define VIDEOAR_KERNEL "chunk_attention.inl"
#include "foreach_isa.h"

namespace videoar {

void check_chunk_attention(const ChunkAttention &call) {
  check_sequence(call.sequence);
  VIDEOAR_CHECK(call.heads > 0 && call.groups > 0 && call.heads % call.groups == 0, "heads ",
                call.heads, ", groups ", call.groups);
  VIDEOAR_CHECK(call.width > 0 && call.width <= kMaxWidth, "width ", call.width, ", at most ",
                kMaxWidth);
  const bool empty = call.sequence.batch == 0 || call.sequence.length == 0;
  VIDEOAR_CHECK(empty || (call.q && call.k && call.v && call.out && call.lse), "q ", call.q, ", k ",
                call.k, ", v ", call.v, ", out ", call.out, ", lse ", call.lse);
  for (const Axes &strides : {call.q_strides, call.k_strides, call.v_strides, call.out_strides})
    VIDEOAR_CHECK(strides[3] == 1, "channels ", strides[3], " elements apart");
}

// One core's time: about 2 ns for 128 channels of a query and a key.
bool worth_threads(const ChunkAttention &call) {
  const double tokens = static_cast<double>(call.sequence.length), width = call.width / 128.0;
  const double rows = static_cast<double>(call.sequence.batch * call.heads);
  return rows * tokens * tokens * width >= kParallelNanoseconds;
}

void chunk_attention(const ChunkAttention &call) {
  check_chunk_attention(call);
  const bool parallel = worth_threads(call);
  const std::vector<QueryBlock> blocks = query_blocks(call.sequence, kBlockRows);
  with_type(call.dtype, [&](auto element) {
    VIDEOAR_DISPATCH(attend_all<decltype(element)>(call, blocks, parallel));
  });
}

} // namespace videoar
