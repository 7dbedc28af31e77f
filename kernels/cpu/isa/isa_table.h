/* One ISA level's kernels as a table of functions: single-threaded pieces that the Zig side splits work over.
 * Every level's translation unit defines kt_isa_<level>() from the same .inc files. */
#ifndef KT_ISA_TABLE_H
#define KT_ISA_TABLE_H
#include "kt.h"

typedef struct kt_isa_table {
  /* rms_norm.inc */
  void (*rms_norm_row)(const float *x, const float *weight, float eps, float offset, float *out, int64_t n);
  void (*add_row)(const float *a, const float *b, float *out, int64_t n);
} kt_isa_table_t;

const kt_isa_table_t *kt_isa_scalar(void);
#if defined(__x86_64__) || defined(_M_X64)
const kt_isa_table_t *kt_isa_avx2(void);
const kt_isa_table_t *kt_isa_avx512(void);
const kt_isa_table_t *kt_isa_avx512bf16(void);
const kt_isa_table_t *kt_isa_amx(void);
#else
const kt_isa_table_t *kt_isa_neon(void);
#endif
#endif
