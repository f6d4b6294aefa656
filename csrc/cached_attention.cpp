#include "cached_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention_blocks.h"
#include "check.h"
#include "parallel.h"

namespace videoar {
namespace {

thread_local AttentionScratch attention_scratch;

int64_t keys_of(const CachedAttention &call, int64_t row) {
  const int32_t *pairs = call.segments + row * call.segments_of_row * 2;
  int64_t keys = 0;
  for (int64_t s = 0; s < call.segments_of_row; ++s)
    keys += pairs[2 * s + 1];
  return keys;
}

} // namespace
} // namespace videoar

#define VIDEOAR_KERNEL "cached_attention.inl"
#include "foreach_isa.h"

namespace videoar {
namespace {

void check_sizes(const CachedAttention &call) {
  VIDEOAR_CHECK(call.batch >= 0 && call.heads >= 0 && call.length >= 0 && call.capacity >= 0,
                "batch ", call.batch, ", heads ", call.heads, ", length ", call.length,
                ", capacity ", call.capacity);
  VIDEOAR_CHECK(call.groups > 0 && call.heads % call.groups == 0, "heads ", call.heads, ", groups ",
                call.groups);
  VIDEOAR_CHECK(call.width > 0 && call.width <= kMaxWidth, "width ", call.width, ", at most ",
                kMaxWidth);
  VIDEOAR_CHECK(call.segments_of_row >= 0, "segments of a row ", call.segments_of_row);
}

void check_memory(const CachedAttention &call) {
  VIDEOAR_CHECK(call.q && call.out, "q ", call.q, ", out ", call.out);
  VIDEOAR_CHECK(call.segments || !call.segments_of_row, "segments ", call.segments);
  VIDEOAR_CHECK((call.k_cache && call.v_cache) || !call.capacity, "k_cache ", call.k_cache,
                ", v_cache ", call.v_cache);
  for (const Axes &strides : {call.q_strides, call.k_strides, call.v_strides, call.out_strides})
    VIDEOAR_CHECK(strides[3] == 1, "channels ", strides[3], " elements apart");
}

// Segments of a row are within the cache and disjoint.
void check_segments(const CachedAttention &call, int64_t row) {
  const int32_t *pairs = call.segments + row * call.segments_of_row * 2;
  for (int64_t s = 0; s < call.segments_of_row; ++s) {
    const int64_t start = pairs[2 * s], length = pairs[2 * s + 1];
    if (length == 0)
      continue;
    VIDEOAR_CHECK(length > 0 && start >= 0 && start + length <= call.capacity, "segments[", row,
                  "][", s, "] = (", start, ", ", length, "), capacity ", call.capacity);
    for (int64_t other = 0; other < s; ++other) {
      const int64_t begin = pairs[2 * other], end = begin + pairs[2 * other + 1];
      VIDEOAR_CHECK(begin == end || start >= end || start + length <= begin, "segments[", row,
                    "]: (", start, ", ", length, ") overlaps (", begin, ", ", end - begin, ")");
    }
  }
}

// One core's time: 50 ns to fetch and pack a key of 128 channels, 2 ns for each of its queries.
double nanoseconds(const CachedAttention &call) {
  int64_t keys = 0;
  for (int64_t row = 0; row < call.batch; ++row)
    keys += keys_of(call, row);
  const double queries = static_cast<double>(call.heads / call.groups * call.length);
  return static_cast<double>(keys * call.groups * call.width) / 128 * (50 + 2 * queries);
}

} // namespace

void cached_attention(const CachedAttention &call) {
  check_sizes(call);
  if (call.batch == 0 || call.heads == 0 || call.length == 0)
    return;
  check_memory(call);
  for (int64_t row = 0; row < call.batch; ++row)
    check_segments(call, row);
  const bool parallel = shares(nanoseconds(call), kParallelNanoseconds, call.awake);
  with_type(call.dtype,
            [&](auto element) { VIDEOAR_DISPATCH(attend_all<decltype(element)>(call, parallel)); });
}

} // namespace videoar
