// Compiles a kernel once per instruction set, in the manner of Highway's foreach_target.h:
//
//   #define VIDEOAR_KERNEL "rms_norm.inl"
//   #include "foreach_isa.h"
//
// gives videoar::(anonymous)::{baseline, avx2, avx512, avx512_bf16}::everything in the file, each
// with vec.inl in front of it. Inside, VIDEOAR_ISA is the level (an int as in `Isa`). All headers
// must be included before: nothing of the standard library may be compiled for a wider processor.
// Include once per translation unit.
#include <cstdint>
#include <cstring>

#include "dtype.h"
#include "isa.h"

// GCC 12 takes the undefined values in its own intrinsics for a mistake (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#ifndef VIDEOAR_KERNEL
#error "define VIDEOAR_KERNEL, the kernel's file, before including foreach_isa.h"
#endif

#define VIDEOAR_ISA 0
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
#define VIDEOAR_ISA 1
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
#define VIDEOAR_ISA 2
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
#define VIDEOAR_ISA 3
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
