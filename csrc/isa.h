// Instruction sets: kernels are compiled once for each (foreach_isa.h), and the processor decides
// at run time which one is called.
#pragma once

#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define VIDEOAR_X86 1
#include <immintrin.h>
#else
#define VIDEOAR_X86 0
#endif

namespace videoar {

// Each contains the one before it. avx2 has FMA; avx512 is F, BW, DQ and VL (Skylake);
// avx512_bf16 adds the dot product of bf16 pairs (Cooper Lake, Zen 4).
enum class Isa { baseline, avx2, avx512, avx512_bf16 };

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
#else
#define VIDEOAR_DISPATCH(...) baseline::__VA_ARGS__
#endif
