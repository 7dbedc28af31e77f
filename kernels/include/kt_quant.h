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
#endif
