// Sizes and memory that the attention kernels share.
#pragma once

#include <array>
#include <cstdint>

namespace videoar {

using Axes = std::array<int64_t, 4>;

constexpr int64_t kMaxWidth = 256;
constexpr int64_t kBlockRows = 64;  // queries that share a packed block of keys
constexpr int64_t kFewQueries = 8;  // fewer than pay for packing keys (docs/kernels.md)
constexpr int64_t kBlockKeys = 128; // at D = 128 in bf16 they fill 32 KB: a first-level cache
// Below about 0.2 ms of work on one core waking other threads costs more than it saves.
constexpr double kParallelNanoseconds = 2e5;

// What a thread works on; sized for the largest call, touched as far as a call needs.
struct alignas(64) AttentionScratch {
  float queries[kBlockRows * kMaxWidth];
  float packed[kBlockKeys * kMaxWidth];
  float scores[kBlockRows * kBlockKeys];
  float sums[kBlockRows * kMaxWidth];
  float largest[kBlockRows], total[kBlockRows], factor[kBlockRows];
};

} // namespace videoar
