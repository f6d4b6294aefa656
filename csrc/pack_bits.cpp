#include "pack_bits.h"

#include <algorithm>
#include <cstring>

#include "check.h"

namespace videoar {
namespace {

constexpr int64_t kWordBits = 32;
constexpr int64_t kGroup = 8;
// Below this many bits (about 0.2 ms on one core) waking other threads costs more than it saves.
constexpr int64_t kParallelBits = int64_t{1} << 20;

// Eight bytes at a time: byte i of a 64-bit number stands for bit i. (The first byte in memory is
// the lowest, as on every processor that the wheels are built for.)
constexpr uint64_t kLowBits = 0x0101010101010101;
constexpr uint64_t kSevenBits = 0x7F7F7F7F7F7F7F7F;

// 1 for each byte that is not 0.
uint64_t nonzero_bytes(uint64_t bytes) {
  return (((bytes & kSevenBits) + kSevenBits) | bytes) >> 7 & kLowBits;
}

// The products of set bytes meet in the highest byte, byte i at its bit i, without carries.
uint32_t gather_bits(uint64_t bytes) {
  return static_cast<uint32_t>(nonzero_bytes(bytes) * 0x0102040810204080 >> 56);
}

// Byte i keeps bit i of its copy of the eight bits.
uint64_t spread_bits(uint32_t bits) {
  return nonzero_bytes(kLowBits * (bits & 0xFF) & 0x8040201008040201);
}

uint32_t pack_word(const uint8_t *bits, int64_t count) {
  uint32_t word = 0;
  for (int64_t i = 0; i < count; i += kGroup) {
    uint64_t eight = 0;
    if (count - i >= kGroup)
      std::memcpy(&eight, bits + i, kGroup);
    else
      std::memcpy(&eight, bits + i, count - i);
    word |= gather_bits(eight) << i;
  }
  return word;
}

void unpack_word(uint32_t word, uint8_t *bits, int64_t count) {
  for (int64_t i = 0; i < count; i += kGroup) {
    const uint64_t eight = spread_bits(word >> i);
    if (count - i >= kGroup)
      std::memcpy(bits + i, &eight, kGroup);
    else
      std::memcpy(bits + i, &eight, count - i);
  }
}

void check(const void *bits, const void *words, int64_t rows, int64_t num_bits) {
  VIDEOAR_CHECK(rows >= 0 && num_bits >= 1, "rows ", rows, ", num_bits ", num_bits);
  VIDEOAR_CHECK(rows == 0 || (bits && words), "bits ", bits, ", words ", words);
}

} // namespace

void pack_bits(const uint8_t *bits, uint32_t *words, int64_t rows, int64_t num_bits,
               int64_t stride_row) {
  check(bits, words, rows, num_bits);
  const int64_t num_words = (num_bits + kWordBits - 1) / kWordBits;
  const bool parallel = rows * num_bits >= kParallelBits;
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t w = 0; w < num_words; ++w)
      words[row * num_words + w] = pack_word(bits + row * stride_row + w * kWordBits,
                                             std::min(kWordBits, num_bits - w * kWordBits));
}

void unpack_bits(const uint32_t *words, uint8_t *bits, int64_t rows, int64_t num_bits,
                 int64_t stride_row) {
  check(bits, words, rows, num_bits);
  const int64_t num_words = (num_bits + kWordBits - 1) / kWordBits;
  const bool parallel = rows * num_bits >= kParallelBits;
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t w = 0; w < num_words; ++w)
      unpack_word(words[row * stride_row + w], bits + row * num_bits + w * kWordBits,
                  std::min(kWordBits, num_bits - w * kWordBits));
}

} // namespace videoar
