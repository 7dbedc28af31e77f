/* What the .inc files share: the level's name mangling and which vector extensions they may use.
 *
 * KT_ISA(name) makes a function's name unique to the level. A kernel is plain C that the compiler vectorises, unless a
 * measured difference earns an intrinsic path, guarded by __AVX2__, __AVX512VNNI__ or __AVX512BF16__ (which the build sets
 * per level), KT_NEON, __ARM_FEATURE_DOTPROD or __ARM_FEATURE_MATMUL_INT8, with the plain path as #else. */
#ifndef KT_ISA_H
#define KT_ISA_H
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "isa_table.h"
#include "kt_quant.h"
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
/* Every 64-bit ARM has Advanced SIMD: the scalar level is told apart by KT_PLAIN. */
#if defined(__aarch64__) && !defined(KT_PLAIN)
#include <arm_neon.h>
#define KT_NEON 1
#endif

#define KT_CONCAT_(a, b) a##_##b
#define KT_CONCAT(a, b) KT_CONCAT_(a, b)
#define KT_ISA(name) KT_CONCAT(name, KT_LEVEL)
#define KT_INLINE static inline __attribute__((always_inline))
#endif
