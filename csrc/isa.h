// Instruction sets: kernels are compiled once for each (foreach_isa.h), and the processor decides
// at run time which one is called.
#pragma once

#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define VIDEOAR_X86 1
#define VIDEOAR_ARM 0
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && defined(__GNUC__) && !defined(__AARCH64EB__)
#define VIDEOAR_X86 0
#define VIDEOAR_ARM 1
#include <arm_neon.h>
#else
#define VIDEOAR_X86 0
#define VIDEOAR_ARM 0
#endif

// What VIDEOAR_ISA is while a kernel is compiled. Those of x86 contain one another.
#define VIDEOAR_BASELINE 0
#define VIDEOAR_NEON 1
#define VIDEOAR_NEON_BF16 2
#define VIDEOAR_AVX2 3
#define VIDEOAR_AVX512 4
#define VIDEOAR_AVX512_BF16 5

namespace videoar {

// Each contains the one before it. avx2 has FMA; avx512 is F, BW, DQ and VL (Skylake);
// avx512_bf16 adds the dot product of bf16 pairs (Cooper Lake, Zen 4), neon_bf16 that of 64-bit Arm
// (Neoverse N2, V1 and V2, Apple M2).
#if VIDEOAR_ARM
enum class Isa { neon, neon_bf16 };
#else
enum class Isa { baseline, avx2, avx512, avx512_bf16 };
#endif

// The set that kernels use: the widest of this processor, or what set_isa chose.
Isa isa();

// Names of the sets that this build and this processor have, narrowest first.
std::vector<std::string> isa_names();

// The name of isa().
std::string isa_name();

// Use one set from now on, in the whole process; for tests and measurements. Throws
// std::invalid_argument for a name that is not among isa_names().
void set_isa(const std::string &name);

} // namespace videoar

// VIDEOAR_DISPATCH(kernel<T>(arguments)) calls the kernel of the instruction set in use. The kernel
// comes from a file that foreach_isa.h compiled in this translation unit.
#if VIDEOAR_X86
#define VIDEOAR_DISPATCH(...)                                                                      \
  do {                                                                                             \
    switch (::videoar::isa()) {                                                                    \
    case ::videoar::Isa::avx512_bf16:                                                              \
      avx512_bf16::__VA_ARGS__;                                                                    \
      break;                                                                                       \
    case ::videoar::Isa::avx512:                                                                   \
      avx512::__VA_ARGS__;                                                                         \
      break;                                                                                       \
    case ::videoar::Isa::avx2:                                                                     \
      avx2::__VA_ARGS__;                                                                           \
      break;                                                                                       \
    case ::videoar::Isa::baseline:                                                                 \
      baseline::__VA_ARGS__;                                                                       \
      break;                                                                                       \
    }                                                                                              \
  } while (false)
#elif VIDEOAR_ARM
#define VIDEOAR_DISPATCH(...)                                                                      \
  do {                                                                                             \
    if (::videoar::isa() == ::videoar::Isa::neon_bf16)                                             \
      neon_bf16::__VA_ARGS__;                                                                      \
    else                                                                                           \
      neon::__VA_ARGS__;                                                                           \
  } while (false)
#else
#define VIDEOAR_DISPATCH(...) baseline::__VA_ARGS__
#endif
