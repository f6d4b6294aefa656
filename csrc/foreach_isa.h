// Compiles a kernel once per instruction set, in the manner of Highway's foreach_target.h:
//
//   #define VIDEOAR_KERNEL "rms_norm.inl"
//   #include "foreach_isa.h"
//
// gives videoar::(anonymous)::{baseline, avx2, avx512, avx512_bf16}::everything in the file, or on
// Arm {neon, neon_bf16}, each with vec.inl in front of it. Inside, VIDEOAR_ISA is one of the
// numbers of isa.h. All headers must be included before: nothing of the standard library may be
// compiled for a wider processor. Include once per translation unit.
#include <cstdint>
#include <cstring>
#include <utility>

#include "dtype.h"
#include "isa.h"

// GCC 12 takes the undefined values in its own intrinsics for a mistake (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#ifndef VIDEOAR_KERNEL
#error "define VIDEOAR_KERNEL, the kernel's file, before including foreach_isa.h"
#endif

#if VIDEOAR_ARM

#define VIDEOAR_ISA VIDEOAR_NEON
namespace videoar {
namespace {
namespace neon {
#include "vec.inl"

#include VIDEOAR_KERNEL
} // namespace neon
} // namespace
} // namespace videoar
#undef VIDEOAR_ISA

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+bf16")
#endif
#define VIDEOAR_ISA VIDEOAR_NEON_BF16
namespace videoar {
namespace {
namespace neon_bf16 {
#include "vec.inl"

#include VIDEOAR_KERNEL
} // namespace neon_bf16
} // namespace
} // namespace videoar
#undef VIDEOAR_ISA
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else // VIDEOAR_ARM

#define VIDEOAR_ISA VIDEOAR_BASELINE
namespace videoar {
namespace {
namespace baseline {
#include "vec.inl"

#include VIDEOAR_KERNEL
} // namespace baseline
} // namespace
} // namespace videoar
#undef VIDEOAR_ISA

#if VIDEOAR_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define VIDEOAR_ISA VIDEOAR_AVX2
namespace videoar {
namespace {
namespace avx2 {
#include "vec.inl"

#include VIDEOAR_KERNEL
} // namespace avx2
} // namespace
} // namespace videoar
#undef VIDEOAR_ISA
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#ifdef __clang__
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define VIDEOAR_ISA VIDEOAR_AVX512
namespace videoar {
namespace {
namespace avx512 {
#include "vec.inl"

#include VIDEOAR_KERNEL
} // namespace avx512
} // namespace
} // namespace videoar
#undef VIDEOAR_ISA
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#ifdef __clang__
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))),             \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#endif
#define VIDEOAR_ISA VIDEOAR_AVX512_BF16
namespace videoar {
namespace {
namespace avx512_bf16 {
#include "vec.inl"

#include VIDEOAR_KERNEL
} // namespace avx512_bf16
} // namespace
} // namespace videoar
#undef VIDEOAR_ISA
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif // VIDEOAR_X86

#endif // VIDEOAR_ARM
