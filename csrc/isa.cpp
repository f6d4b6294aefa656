#include "isa.h"

#include <atomic>

#include "check.h"

#if VIDEOAR_ARM && defined(__linux__)
#include <sys/auxv.h>
#elif VIDEOAR_ARM && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace videoar {
namespace {

#if VIDEOAR_ARM
constexpr const char *kNames[] = {"neon", "neon_bf16"};

bool has_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1ul << 14; // HWCAP2_BF16, which older headers do not name
  return getauxval(AT_HWCAP2) & kBf16;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return !sysctlbyname("hw.optional.arm.FEAT_BF16", &value, &size, nullptr, 0) && value;
#else
  return false;
#endif
}
#else
constexpr const char *kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};
#endif

Isa widest() {
#if VIDEOAR_ARM
  return has_bf16() ? Isa::neon_bf16 : Isa::neon;
#elif VIDEOAR_X86
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
