/* One ISA level's kernels as a table of functions: single-threaded pieces that the Zig side splits work over.
 * Every level's translation unit defines kt_isa_<level>() from the same .inc files. */
#ifndef KT_ISA_TABLE_H
#define KT_ISA_TABLE_H
#include "kt.h"

#define KT_TILE_TOKENS 16

/* One matrix product, or a thread's share of it: out[t][r] = w[r] . x[t] (+ bias[r]) (+ out[t][r]). */
typedef struct kt_matmul {
  const void *w;
  int64_t row_stride, rows, cols;
  uint32_t dtype, packed;
  const void *acts; /* int8 tiles (act.inc), bf16 tiles of KT_TILE_TOKENS (amx_matmul.inc), or NULL: float activations */
  int64_t tile_bytes;
  int32_t tile_tokens; /* 1, 2, 4 or 8; KT_TILE_TOKENS */
  int32_t accumulate;
  int32_t rounded; /* without acts: activations may be rounded to the weights' type */
  int32_t ahead;   /* packed weights of one tile: bytes ahead of what is read that are asked for; 0: that is left to the processor */
  const float *x; /* without acts: rows of x_stride floats */
  int64_t x_stride;
  const float *bias;
  float *out;
  int64_t out_stride; /* floats */
} kt_matmul_t;

/* ---- attention.inc ---- */
/* Boundaries lie at multiples of these positions whatever the batch is, so that a token's result does not depend on it. */
#define KT_ATTENTION_SPLIT 256 /* keys of one partial result of a short query */
#define KT_ATTENTION_BLOCK 64  /* keys of one step of a long query */
#define KT_ATTENTION_ROWS 96   /* rows (queries times heads of a group) that a long query's item aims at */
#define KT_ATTENTION_TILE 6    /* rows of a register tile */
#define KT_ATTENTION_SHORT 16  /* rows up to which a query is short; one token always is */
#define KT_ATTENTION_SPLIT_ROWS 4 /* of a short query that are computed together */
#define KT_ATTENTION_SCORES ((KT_ATTENTION_SPLIT + 16) * KT_ATTENTION_SPLIT_ROWS)

/* What every item of a call shares. Strides are bytes. */
typedef struct kt_attention {
  const char *q, *k, *v;
  char *out;
  const float *sinks; /* [heads] or NULL */
  int64_t q_token, q_head, out_token, out_head;
  int64_t k_page, k_head, k_row, v_page, v_head, v_row;
  int32_t kv_heads, group; /* heads of one kv head */
  int32_t k_dim, v_dim;
  int32_t page_size, kind; /* kind of cache: 0 F32, 1 F16, 2 Q8_0 */
  int32_t window, chunk;   /* 0: none */
  float scale, soft_cap;
  float temperature_scale, temperature_floor; /* scale 0: none */
} kt_attention_t;

/* Consecutive queries of one sequence with one kv head. */
typedef struct kt_attention_item {
  const int32_t *table; /* the sequence's pages */
  int64_t token;        /* of the first query, in q and out */
  int32_t position;     /* of the first query, in the sequence */
  int32_t count;
  int32_t kv_head;
  int32_t keys;         /* 0: causal; else every query sees keys 0 .. keys - 1 */
  int32_t warm; /* keys of the split, from its beginning, that are in the cache */
  struct {      /* keys that this thread reads next, fetched meanwhile */
    int32_t kv_head, keys;
    int64_t base;
    const int32_t *table;
  } ahead;
} kt_attention_item_t;

/* Floats of a row padded to whole vectors of any level, and of a partial result: values, maximum, sum. */
#define KT_ATTENTION_PADDED(n) (((n) + 15) / 16 * 16)
#define KT_ATTENTION_PARTIAL(v_dim) (KT_ATTENTION_PADDED(v_dim) + 16)

#define KT_ATTENTION_MAX_DIM 576   /* a row's result is combined on the stack */
#define KT_HEAD_COLUMNS 256        /* of a head's transposed weight that are widened at a time: whole blocks of every type */
#define KT_HEAD_TOKENS 4           /* of a register tile of a head's product */

#define KT_DELTA_COLUMNS 64   /* of a head's state that one item walks through its tokens */
#define KT_MAX_EXPERTS 1024   /* a router's row is kept on the stack */
#define KT_SAMPLING_BINS 1024 /* of a row whose draw is not decided near its maximum */

typedef struct kt_isa_table {
  /* act.inc, packed.inc, linear.inc */
  int32_t row_block; /* rows that a packed weight keeps together; ranges of rows start at multiples of it */
  int32_t act_token_bytes; /* of one token and 32 columns in a tile */
  void (*quantize_row)(const float *x, int64_t n, void *tile, int32_t tokens, int32_t slot);
  void (*copy_act)(const void *source, int32_t source_tokens, int32_t from, void *tile, int32_t tokens, int32_t to, int64_t n);
  int64_t (*packed_bytes)(uint32_t dtype, int64_t rows, int64_t n);
  void (*pack_rows)(uint32_t dtype, const char *rows, int64_t row_stride, int count, int64_t n, uint8_t *out);
  int64_t (*matmul_scratch)(int64_t cols);
  /* token0 is a multiple of tile_tokens, row0 of row_block; scratch has matmul_scratch(cols) bytes */
  void (*matmul)(const kt_matmul_t *job, int64_t row0, int64_t row1, int64_t token0, int64_t token1, void *scratch);
  /* amx_matmul.inc, NULL on levels without tiles: one row of activations into a slot of a tile of KT_TILE_TOKENS, whose
   * bytes are those of n padded to 32 bf16; whether matmul takes such activations for a type */
  void (*tile_row)(const float *x, int64_t n, void *tile, int32_t slot);
  int32_t (*tile_takes)(uint32_t dtype);
  /* rms_norm.inc */
  void (*rms_norm_row)(const float *x, const float *weight, float eps, float offset, float *out, int64_t n);
  void (*add_row)(const float *a, const float *b, float *out, int64_t n);
  void (*layer_norm_row)(const float *x, const float *weight, const float *bias, float eps, float *out, int64_t n);
  /* convert.inc */
  void (*f16_to_f32_row)(const uint16_t *src, float *out, int64_t n);
  void (*f32_to_f16_row)(const float *src, uint16_t *out, int64_t n);
  void (*bf16_to_f32_row)(const uint16_t *src, float *out, int64_t n);
  void (*f32_to_bf16_row)(const float *src, uint16_t *out, int64_t n);
  /* dequant.inc: any weight type; n is whole blocks */
  void (*dequant_row)(uint32_t dtype, const void *row, float *out, int64_t n);
  /* quantize.inc: n is whole blocks; 0 where a value is not finite */
  int32_t (*quantize_weights)(uint32_t dtype, const float *x, const float *importance, void *out, int64_t n);
  /* elementwise.inc */
  void (*convert_row)(uint32_t from, const void *src, uint32_t to, void *out, int64_t n);
  void (*scale_row)(float *x, float scale, int64_t n);
  void (*add_scaled_row)(const float *x, float scale, float *out, int64_t n);
  /* activation.inc: act is KT_ACT_*; out may be gate or up */
  void (*act_mul_row)(uint32_t act, const float *gate, const float *up, float *out, int64_t n);
  void (*act_row)(uint32_t act, const float *x, float *out, int64_t n);
  /* sampling.inc */
  int64_t (*argmax_row)(const float *x, int64_t n, float *best);
  double (*weight_sum)(const float *x, float max, float inv_temperature, int64_t n);
  void (*weight_moments)(const float *x, float max, float inv_temperature, int64_t n, double *moments);
  void (*logit_moments)(const float *x, float max, int64_t n, double *moments);
  void (*weight_row)(float *x, float max, float inv_temperature, int64_t n);
  int64_t (*gather_above)(const float *x, int64_t n, float bound, uint32_t first_id, uint64_t *keys);
  void (*key_values)(const uint64_t *keys, float *out, int64_t n);
  float (*lowest_above)(const float *x, int64_t n, float bound);
  void (*bin_weights)(const float *x, int64_t n, float max, float inv_temperature, float scale, uint32_t *counts, double *masses);
  int64_t (*gather_bin)(const float *x, int64_t n, float max, float scale, int32_t wanted, uint32_t first_id, uint64_t *keys);
  /* router.inc */
  void (*router_row)(const float *logits, const float *bias, int64_t n, int64_t k, const kt_router_params_t *params, int32_t *ids, float *weights);
  /* head_linear.inc */
  void (*head_transposed)(const kt_matmul_t *job, int64_t row0, int64_t row1, int64_t token0, int64_t token1, int64_t block_values, int64_t block_bytes, float *scratch);
  /* measure.inc */
  uint64_t (*read_bytes)(const void *data, int64_t bytes, int variant);
  int64_t (*int_dot_rounds)(int64_t rounds, int variant);
  int64_t (*int4_dot_rounds)(int64_t rounds);
  int64_t (*bf16_dot_rounds)(int64_t rounds);
  int64_t (*fma_rounds)(int64_t rounds);
  /* vmath.inc; out may be x */
  void (*exp_row)(const float *x, float *out, int64_t n);
  void (*tanh_row)(const float *x, float *out, int64_t n);
  /* rope.inc: x [2n] in place, table [2n] */
  void (*rope_row)(float *x, const float *table, int64_t n, uint32_t interleaved);
  /* attention.inc: one row of K or V to a cache of F16, F32 or Q8_0 */
  void (*store_row)(const float *x, void *out, uint32_t dtype, int64_t n);
  int32_t (*attention_split)(const kt_attention_t *a, const kt_attention_item_t *item, int64_t split, float *partials, int64_t partial_stride, float *scratch);
  void (*attention_combine)(const kt_attention_t *a, int64_t token, int64_t head, const float *partials, int64_t count);
  void (*attention_block)(const kt_attention_t *a, const kt_attention_item_t *item, float *scratch);
  void (*attention_tiles)(const kt_attention_t *a, const kt_attention_item_t *item, float *scratch); /* NULL without tiles */
  /* delta_rule.inc; strides are floats, a NULL history is zeros */
  void (*conv_segment)(const float *x, int64_t x_stride, const float *weight, int64_t weight_stride, int64_t kernel, const float *history,
                       float *target, int64_t state_stride, float *out, int64_t out_stride, int64_t tokens, int64_t n);
  void (*delta_step)(const float *q, const float *k, const float *v, float decay, float beta, const float *in, int64_t in_stride, float *state,
                     int64_t stride, float *out, int64_t k_dim, int64_t n);
  void (*l2_norm_row)(const float *x, float scale, float eps, float *out, int64_t n);
  void (*delta_gates)(float b, float a, float rate, float *beta, float *decay);
  void (*sigmoid_mul_row)(const float *x, const float *gate, int64_t gate_step, float *out, int64_t n);
} kt_isa_table_t;

const kt_isa_table_t *kt_isa_scalar(void);
#if defined(__x86_64__) || defined(_M_X64)
const kt_isa_table_t *kt_isa_avx2(void);
const kt_isa_table_t *kt_isa_avx512(void);
const kt_isa_table_t *kt_isa_avx512bf16(void);
const kt_isa_table_t *kt_isa_amx(void);
#else
const kt_isa_table_t *kt_isa_neon(void);
const kt_isa_table_t *kt_isa_dotprod(void);
const kt_isa_table_t *kt_isa_i8mm(void);
#endif
#endif
