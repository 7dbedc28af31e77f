/* GGML block layouts (ggml-common.h of llama.cpp, "Formats" of the GGUF specification), with their sizes asserted. */
#ifndef KT_QUANT_H
#define KT_QUANT_H
#include <stdint.h>
#include "kt.h"

#define KT_QK 32
#define KT_QK_K 256
typedef uint16_t kt_half; /* IEEE binary16 bits */

/* value = d * (q - 8), q 4 bits: low nibbles are columns 0..15, high nibbles 16..31 */
typedef struct { kt_half d; uint8_t qs[16]; } kt_block_q4_0;
/* value = d * q + m */
typedef struct { kt_half d, m; uint8_t qs[16]; } kt_block_q4_1;
/* value = d * (q - 16), the fifth bit of column i is bit i of qh */
typedef struct { kt_half d; uint8_t qh[4]; uint8_t qs[16]; } kt_block_q5_0;
typedef struct { kt_half d, m; uint8_t qh[4]; uint8_t qs[16]; } kt_block_q5_1;
/* value = d * q */
typedef struct { kt_half d; int8_t qs[32]; } kt_block_q8_0;
/* 16 sub-blocks of 16: value = d * (scales & 15) * q - dmin * (scales >> 4), q 2 bits */
typedef struct { uint8_t scales[16]; uint8_t qs[64]; kt_half d, dmin; } kt_block_q2_k;
/* 16 sub-blocks of 16: value = d * (scale6 - 32) * (q2 - (hmask bit ? 0 : 4)) */
typedef struct { uint8_t hmask[32]; uint8_t qs[64]; uint8_t scales[12]; kt_half d; } kt_block_q3_k;
/* 8 sub-blocks of 32: value = d * scale6 * q - dmin * min6, q 4 bits */
typedef struct { kt_half d, dmin; uint8_t scales[12]; uint8_t qs[128]; } kt_block_q4_k;
typedef struct { kt_half d, dmin; uint8_t scales[12]; uint8_t qh[32]; uint8_t qs[128]; } kt_block_q5_k;
/* 16 sub-blocks of 16: value = d * scale8 * (q - 32), q 6 bits */
typedef struct { uint8_t ql[128]; uint8_t qh[64]; int8_t scales[16]; kt_half d; } kt_block_q6_k;

/* value = d * q */
typedef struct { float d; int8_t qs[256]; int16_t sums[16]; } kt_block_q8_k;

/* Types whose values are whole numbers around zero times a scale: value = d * q (unpacked in whole.inc). */
/* q = table[code], codes as in q4_0 */
typedef struct { kt_half d; uint8_t qs[16]; } kt_block_iq4_nl;
/* 8 sub-blocks of 32: value = d * (scale6 - 32) * table[code] */
typedef struct { kt_half d; uint16_t scales_h; uint8_t scales_l[4]; uint8_t qs[128]; } kt_block_iq4_xs;
/* OCP microscaling: value = 2^(e - 128) * table[code], the table being twice E2M1 */
typedef struct { uint8_t e; uint8_t qs[16]; } kt_block_mxfp4;
/* 4 sub-blocks of 16: value = E4M3(d) / 2 * table[code], low nibbles first */
typedef struct { uint8_t d[4]; uint8_t qs[32]; } kt_block_nvfp4;
/* value = d * E4M3(q); d has no alignment */
typedef struct { uint8_t d[4]; uint8_t q[128]; } kt_block_f8_e4m3;
/* value = bf16(d) * (q - 8), q as Q4_0's */
typedef struct { uint16_t d; uint8_t qs[16]; } kt_block_i4_bf16;
/* value = f16(d) * (q - zero), zero 0 .. 16, q as Q4_0's */
typedef struct { uint8_t d[2]; uint8_t zero; uint8_t qs[16]; } kt_block_i4_zero;
/* value = bit ? d : -d */
typedef struct { kt_half d; uint8_t qs[16]; } kt_block_q1_0;
/* value = d * (q - 1), q 2 bits in order */
typedef struct { kt_half d; uint8_t qs[16]; } kt_block_q2_0;
/* value = d * (q - 1); five ternary digits a byte as a fraction of 256, four in qh */
typedef struct { uint8_t qs[48]; uint8_t qh[4]; kt_half d; } kt_block_tq1_0;
/* value = d * (q - 1), q 2 bits; byte l of each half's 32 holds columns l, l+32, l+64, l+96 */
typedef struct { uint8_t qs[64]; kt_half d; } kt_block_tq2_0;
/* Per 32: four 8-bit indices of 8 values, then four 7-bit sign patterns and a 4-bit scale */
typedef struct { kt_half d; uint16_t qs[32]; } kt_block_iq2_xxs;
/* 9-bit index and 7-bit sign pattern per 8 values, a 4-bit scale per 16 */
typedef struct { kt_half d; uint16_t qs[32]; uint8_t scales[8]; } kt_block_iq2_xs;
/* 10-bit index (qs, qh), 8 signs per 8 values, a 4-bit scale per 16 */
typedef struct { kt_half d; uint8_t qs[32]; uint8_t signs[32]; uint8_t qh[8]; uint8_t scales[8]; } kt_block_iq2_s;
/* 8-bit index per 4 values; per 32 four 7-bit sign patterns and a 4-bit scale */
typedef struct { kt_half d; uint8_t qs[64]; uint8_t signs[32]; } kt_block_iq3_xxs;
/* 9-bit index per 4 values (qs, qh), 8 signs per 8, a 4-bit scale per 32 */
typedef struct { kt_half d; uint8_t qs[64]; uint8_t qh[8]; uint8_t signs[32]; uint8_t scales[4]; } kt_block_iq3_s;
/* 11-bit index per 8 values; per 32 a 3-bit scale and the sign of the shift of 1/8 */
typedef struct { kt_half d; uint8_t qs[32]; uint16_t qh[8]; } kt_block_iq1_s;
/* 11-bit index and shift per 8 values, a 3-bit scale per 16; the f16 scale lies in the top nibbles of the four words */
typedef struct { uint8_t qs[32]; uint8_t qh[16]; uint16_t scales[4]; } kt_block_iq1_m;

KT_STATIC_ASSERT(sizeof(kt_block_q4_0) == 18, "q4_0");
KT_STATIC_ASSERT(sizeof(kt_block_q4_1) == 20, "q4_1");
KT_STATIC_ASSERT(sizeof(kt_block_q5_0) == 22, "q5_0");
KT_STATIC_ASSERT(sizeof(kt_block_q5_1) == 24, "q5_1");
KT_STATIC_ASSERT(sizeof(kt_block_q8_0) == 34, "q8_0");
KT_STATIC_ASSERT(sizeof(kt_block_q2_k) == 84, "q2_k");
KT_STATIC_ASSERT(sizeof(kt_block_q3_k) == 110, "q3_k");
KT_STATIC_ASSERT(sizeof(kt_block_q4_k) == 144, "q4_k");
KT_STATIC_ASSERT(sizeof(kt_block_q5_k) == 176, "q5_k");
KT_STATIC_ASSERT(sizeof(kt_block_q6_k) == 210, "q6_k");
KT_STATIC_ASSERT(sizeof(kt_block_q8_k) == 292, "q8_k");
KT_STATIC_ASSERT(sizeof(kt_block_iq4_nl) == 18, "iq4_nl");
KT_STATIC_ASSERT(sizeof(kt_block_iq4_xs) == 136, "iq4_xs");
KT_STATIC_ASSERT(sizeof(kt_block_mxfp4) == 17, "mxfp4");
KT_STATIC_ASSERT(sizeof(kt_block_nvfp4) == 36, "nvfp4");
KT_STATIC_ASSERT(sizeof(kt_block_f8_e4m3) == 132, "f8_e4m3");
KT_STATIC_ASSERT(sizeof(kt_block_i4_bf16) == 18, "i4_bf16");
KT_STATIC_ASSERT(sizeof(kt_block_i4_zero) == 19, "i4_zero");
KT_STATIC_ASSERT(sizeof(kt_block_q1_0) == 18, "q1_0");
KT_STATIC_ASSERT(sizeof(kt_block_q2_0) == 18, "q2_0");
KT_STATIC_ASSERT(sizeof(kt_block_tq1_0) == 54, "tq1_0");
KT_STATIC_ASSERT(sizeof(kt_block_tq2_0) == 66, "tq2_0");
KT_STATIC_ASSERT(sizeof(kt_block_iq2_xxs) == 66, "iq2_xxs");
KT_STATIC_ASSERT(sizeof(kt_block_iq2_xs) == 74, "iq2_xs");
KT_STATIC_ASSERT(sizeof(kt_block_iq2_s) == 82, "iq2_s");
KT_STATIC_ASSERT(sizeof(kt_block_iq3_xxs) == 98, "iq3_xxs");
KT_STATIC_ASSERT(sizeof(kt_block_iq3_s) == 110, "iq3_s");
KT_STATIC_ASSERT(sizeof(kt_block_iq1_s) == 50, "iq1_s");
KT_STATIC_ASSERT(sizeof(kt_block_iq1_m) == 56, "iq1_m");
#endif
