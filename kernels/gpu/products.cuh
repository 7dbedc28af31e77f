/* Products of activations and weights: what gemv.cu, gemm.cu, linear.cu and moe.cu share. */
#ifndef KT_GPU_PRODUCTS_H
#define KT_GPU_PRODUCTS_H
#include "blocks.cuh"

/* Most rows of activations that a product reads the weights once for, each row's sum in registers. */
#define KT_GEMV_TOKENS 8

struct kt_int8_rows {
  const int8_t *codes;  /* [rows][n] */
  const float2 *scales; /* [rows][n / 32]: scale, scale * sum of codes */
  int64_t n;
};
kt_status_t kt_gpu_quantize(kt_ctx *ctx, kt_frows x, kt_int8_rows *out);
/* The codes of rms_norm(x) in one launch, where a row fits a block's registers. */
bool kt_gpu_can_norm_quantize(kt_frows x, kt_norm norm);
kt_status_t kt_gpu_norm_quantize(kt_ctx *ctx, kt_frows x, kt_norm norm, kt_int8_rows *out);
/* out [rows][width] bf16, zeros behind x's n columns. */
kt_status_t kt_gpu_to_bf16(kt_ctx *ctx, kt_frows x, int64_t width, void *out);

/* Whether kt_gpu_gemv_int8 reads the type. */
static inline bool kt_has_int8(uint32_t type) {
  return type == KT_PACKED(KT_Q4_K) || type == KT_PACKED(KT_Q6_K) || type == KT_PACKED(KT_Q4_0) || type == KT_PACKED(KT_Q4_1) || type == KT_PACKED(KT_Q8_0);
}

/* out[t][r] = x[t] . w[r] (+ bias[r]) (+ out[t][r]). One or more tokens at a time; the sums do not depend on how many. */
struct kt_product {
  kt_weight w;
  int64_t rows, n;
  const float *bias;
  bool add;
  float *out;
  int64_t out_stride;
  /* With a second weight (data not NULL; int8 only): out = act(w . x + bias, up . x + up_bias). */
  kt_weight up;
  const float *up_bias;
  uint32_t act;
};
kt_status_t kt_gpu_gemv_int8(kt_ctx *ctx, const kt_product &p, const kt_int8_rows &x, int64_t tokens);
kt_status_t kt_gpu_gemv_float(kt_ctx *ctx, const kt_product &p, kt_frows x);

/* Products of many rows with F32 weights (gemm_f32.cu). */
bool kt_gpu_takes_gemm_f32(const kt_tensor_t *w, kt_frows x);
kt_status_t kt_gpu_gemm_f32(kt_ctx *ctx, kt_frows x, const kt_tensor_t *w, const float *bias, bool add, kt_frows out);
/* Counters that are zero between launches, each kernel leaving them so. */
kt_status_t kt_gpu_counters(kt_ctx *ctx, int64_t count, uint32_t **out);

/* Experts: pair j of a token t is row t * k + j; its matrix is number ids[t * k + j] of the stack. */
struct kt_expert_pairs {
  const int32_t *ids;
  int64_t ids_stride, k, tokens, experts, matrix_stride;
  bool rows_by_pair; /* activations are rows of pairs, not of tokens */
};
/* out[pair] = its expert's matrix . its activations (+ its expert's bias); NaN where an id is outside the stack. */
kt_status_t kt_gpu_experts_int8(kt_ctx *ctx, const kt_product &p, const kt_int8_rows &x, const kt_expert_pairs &e);
kt_status_t kt_gpu_experts_float(kt_ctx *ctx, const kt_product &p, kt_frows x, const kt_expert_pairs &e);

/* Operands of the kernels that copy weights ahead. */
#define KT_STREAM_PARTS 3
struct kt_stream_part {
  const uint8_t *w, *up;
  float *out;
  const float *bias, *up_bias;
  int rows;
  uint32_t type; /* without KT_PACKED */
  int row_bytes, segment_bytes;
};
/* The same products of one row of activations (row.cu), codes of x or of its norm made by the kernel. `count` weights of the same columns,
 * 1 .. KT_STREAM_PARTS, which agree in `add` and `act`. False: not for these operands. */
bool kt_gpu_row(kt_ctx *ctx, kt_frows x, const kt_norm *norm, const kt_product *products, int count, kt_status_t *status);
/* The same of 2 .. KT_ROWS_TOKENS rows, 16-byte aligned, without norm (rows.cu); weights of one type that kt_gpu_takes_rows takes. */
#define KT_ROWS_TOKENS 16
bool kt_gpu_takes_rows(const kt_ctx *ctx, const kt_weight &w, int64_t n, int64_t tokens);
kt_status_t kt_gpu_rows(kt_ctx *ctx, kt_frows x, const kt_product *products, int count);

/* Experts of a few tokens by kernels that copy weights ahead (stream.cu), each making its own codes of x. */
/* out[pair] as kt_gpu_experts_int8. */
bool kt_gpu_stream_pairs(kt_ctx *ctx, const kt_product &p, kt_frows x, const kt_expert_pairs &e, kt_status_t *status);
/* out[token] (+)= the sum of its pairs' products times their weights (NULL: ones); known_ids: the call before was kt_gpu_stream_pairs of
 * the same pairs, so that ids are there when the kernel begins. */
bool kt_gpu_stream_fits(int64_t pairs, int64_t n, const kt_tensor_t *down);
bool kt_gpu_stream_down(kt_ctx *ctx, const kt_product &p, kt_frows x, const kt_expert_pairs &e, const float *weights, int64_t weights_stride, bool known_ids,
                        kt_status_t *status);

/* C[m][r] = A[m] . B[r] (+ bias[r]) (+ C[m][r]) with bf16 operands and f32 sums; n a multiple of 32. With `tiles` rows of A and of
 * C are chosen by lists (see moe.cu). */
struct kt_gemm_tile {
  int32_t expert, first, count; /* positions first .. first + count of the list */
  int32_t unused;
};
struct kt_gemm {
  const __nv_bfloat16 *a; /* [m][n] */
  const __nv_bfloat16 *b; /* [rows][n]; of expert e: b + e * rows * n */
  int64_t m, rows, n;
  const float *bias; /* [rows]; of expert e: bias + e * rows */
  bool add;
  float *c;
  int64_t c_stride;
  const kt_gemm_tile *tiles; /* [num_tiles], count 0 where there are fewer */
  int64_t num_tiles;
  const int32_t *list; /* position -> pair */
  int32_t a_divisor;   /* row of A of a pair: pair / a_divisor */
};
#define KT_GEMM_ROWS 128
kt_status_t kt_gpu_gemm(kt_ctx *ctx, const kt_gemm &g);

/* The same straight from packed weights on sm_90a (tile.cu). Activations are panels of 64 positions. */
#define KT_TILE_WIDTHS 4
struct kt_tiles {
  kt_product product; /* out [positions or pairs][rows]; with `up`, out or out_panels */
  int64_t matrix_stride;
  const void *panels;
  int64_t tokens;            /* dense */
  const kt_gemm_tile *tiles; /* or of experts: first a multiple of 64, count at most width */
  int64_t num_tiles;
  int width;
  const int32_t *list; /* position -> row of out, or NULL */
  void *out_panels;    /* bf16, n of them is product.rows, a multiple of 64; or NULL */
};
bool kt_gpu_takes_tiles(const kt_ctx *ctx, const kt_weight &w, int64_t n);
/* The least width of tiles for so many tokens each. */
int kt_tile_width(const kt_weight &w, bool dual, double tokens);
int64_t kt_panel_bytes(int64_t positions, int64_t n);
/* Row list[position] / divisor of x at each position (-1: none), or x's rows in order. */
kt_status_t kt_gpu_to_panels(kt_ctx *ctx, kt_frows x, const int32_t *list, int divisor, int64_t positions, void *panels);
kt_status_t kt_gpu_tiles(kt_ctx *ctx, const kt_tiles &t);

/* Products of experts with a few tokens each (grouped.cu, sm_90): rows of activations are records of codes. */
#define KT_GROUPED_TOKENS 8
struct kt_grouped {
  const kt_tensor_t *w, *up; /* up, or NULL */
  const float *bias, *up_bias;
  uint32_t act;
  const kt_gemm_tile *tiles; /* count at most KT_GROUPED_TOKENS, those of none behind all others */
  int64_t num_tiles;
  const int32_t *list; /* position -> pair */
  const void *records;
  int64_t divisor; /* of a pair, its record; 0: records lie by position */
  void *out_records; /* with up: by position */
  float *out;        /* else [pairs][rows] */
};
bool kt_gpu_takes_grouped(const kt_ctx *ctx, const kt_tensor_t *w, bool dual);
int64_t kt_grouped_bytes(int64_t rows, int64_t n);
kt_status_t kt_gpu_code_rows(kt_ctx *ctx, kt_frows x, void *records);
kt_status_t kt_gpu_grouped(kt_ctx *ctx, const kt_grouped &g);

/* The same for a few tokens (few.cu), any device: weights are read once. Tiles of experts begin at multiples of their width. */
#define KT_FEW_TOKENS 32
bool kt_gpu_takes_few(const kt_weight &w, int64_t n);
kt_status_t kt_gpu_few(kt_ctx *ctx, const kt_tiles &t);
#endif
