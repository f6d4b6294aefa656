#include "isa.h"

#include <atomic>

#include "check.h"

namespace videoar {
namespace {

constexpr const char *kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

Isa widest() {
#if VIDEOAR_X86
  __builtin_cpu_init();
  // These also ask whether the operating system saves the wider registers.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
    return Isa::baseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::avx2;
  return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
#else
  return Isa::baseline;
#endif
}

std::atomic<Isa> &current() {
  static std::atomic<Isa> value{widest()};
  return value;
}

} // namespace

Isa isa() { return current().load(std::memory_order_relaxed); }

std::vector<std::string> isa_names() { return {kNames, kNames + static_cast<int>(widest()) + 1}; }

std::string isa_name() { return kNames[static_cast<int>(isa())]; }

void set_isa(const std::string &name) {
  const int count = static_cast<int>(widest()) + 1;
  int index = 0;
  while (index < count && name != kNames[index])
    ++index;
  VIDEOAR_CHECK(index < count, "this processor has no instruction set '", name, "', its widest is ",
                kNames[count - 1]);
  current().store(static_cast<Isa>(index), std::memory_order_relaxed);
}

} // namespace videoar
