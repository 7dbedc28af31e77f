/* One ISA level's kernels as a table of functions: single-threaded pieces that the Zig side splits work over.
 * Every level's translation unit defines kt_isa_<level>() from the same .inc files. */
#ifndef KT_ISA_TABLE_H
#define KT_ISA_TABLE_H
#include "kt.h"

typedef struct kt_isa_table {
  /* rms_norm.inc */
  void (*rms_norm_row)(const float *x, const float *weight, float eps, float offset, float *out, int64_t n);
  void (*add_row)(const float *a, const float *b, float *out, int64_t n);
  /* convert.inc */
  void (*f16_to_f32_row)(const uint16_t *src, float *out, int64_t n);
  void (*f32_to_f16_row)(const float *src, uint16_t *out, int64_t n);
  void (*bf16_to_f32_row)(const uint16_t *src, float *out, int64_t n);
  void (*f32_to_bf16_row)(const float *src, uint16_t *out, int64_t n);
  /* dequant.inc: any weight type; n is whole blocks */
  void (*dequant_row)(uint32_t dtype, const void *row, float *out, int64_t n);
  /* elementwise.inc */
  void (*convert_row)(uint32_t from, const void *src, uint32_t to, void *out, int64_t n);
  void (*scale_row)(float *x, float scale, int64_t n);
  /* vmath.inc; out may be x */
  void (*exp_row)(const float *x, float *out, int64_t n);
  void (*tanh_row)(const float *x, float *out, int64_t n);
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
