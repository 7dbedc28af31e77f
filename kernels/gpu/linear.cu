/* kt_linear, kt_norm_linear, kt_linear_residual, kt_gate_up_act, kt_qkv_rope_store: products chosen by type, tokens and precision.
 *   f32 precision     float activations; the sums of a row do not depend on the batch
 *   one token         int8 activations, made by the product itself, weights copied ahead (row.cu, sm_90), else by gemv.cu
 *   2 .. 16 tokens    activations as halves, weights copied ahead (rows.cu, sm_90)
 *   2 .. 32 tokens    bf16 activations, packed weights read once (few.cu)
 *   more tokens       bf16 by warpgroups straight from packed weights (tile.cu, sm_90a), else weights made bf16 for gemm.cu
 * F32 weights (routers) keep float activations. Types without packed layout: int8 or float up to 8 tokens, then gemm.cu. */
#include "async.cuh"
#include "attention.cuh"
#include "products.cuh"

/* Weights are made bf16 in pieces of this size, which stay in the second cache. */
#define WEIGHT_BYTES (32ll << 20)

kt_status_t kt_gpu_weight(kt_ctx *ctx, const char *name, const kt_tensor_t *w, uint32_t ndim, int64_t columns) {
  KT_TRY(kt_gpu_tensor(ctx, name, w, ndim));
  if (w->dtype == KT_I32) return KT_INVALID("%s has type %u, which is no weight type", name, w->dtype);
  KT_TRY(kt_gpu_size(name, w, (int)ndim - 1, columns));
  const bool plain = w->dtype == KT_F32 || w->dtype == KT_F16 || w->dtype == KT_BF16;
  if (!(w->flags & KT_TENSOR_PACKED) && !plain && ndim == 2 && w->shape[0] > 1 && w->stride[0] < columns / kt_gpu_block(w->dtype).values * kt_gpu_block(w->dtype).bytes)
    return KT_INVALID("%s has rows %lld bytes apart", name, (long long)w->stride[0]);
  return KT_OK;
}

/* 16-byte loads of the int8 kernels. */
static bool takes_int8(const kt_weight &w, int64_t n) { return kt_has_int8(w.type) && n % 32 == 0 && ((uintptr_t)w.data | (uintptr_t)w.row_stride) % 16 == 0; }

static kt_product product_of(const kt_tensor_t *w, const float *bias, bool add, kt_frows out) {
  kt_product p = {};
  p.w = kt_weight_of(w);
  p.rows = w->shape[0];
  p.n = w->shape[1];
  p.bias = bias;
  p.add = add;
  p.out = out.data;
  p.out_stride = out.count == 1 ? p.rows : out.stride;
  return p;
}

static kt_status_t gemm(kt_ctx *ctx, const __nv_bfloat16 *a, int64_t m, const kt_tensor_t *w, const float *bias, bool add, kt_frows out) {
  const int64_t rows = w->shape[0], n = w->shape[1];
  kt_gemm g = {};
  g.a = a;
  g.m = m;
  g.n = n;
  g.add = add;
  g.c_stride = out.stride;
  const bool direct = w->dtype == KT_BF16 && w->stride[0] == 2 * n && (uintptr_t)w->data % 16 == 0;
  const int64_t piece = direct ? rows : (WEIGHT_BYTES / (2 * n) < 128 ? 128 : WEIGHT_BYTES / (2 * n) / 128 * 128);
  void *memory = NULL;
  if (!direct) KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_WEIGHT, (piece < rows ? piece : rows) * n * 2, &memory));
  for (int64_t first = 0; first < rows; first += piece) {
    g.rows = rows - first < piece ? rows - first : piece;
    if (!direct) KT_TRY(kt_gpu_dequantize(ctx, w, first, g.rows, KT_BF16, memory));
    g.b = direct ? (const __nv_bfloat16 *)w->data : (const __nv_bfloat16 *)memory;
    g.bias = bias == NULL ? NULL : bias + first;
    g.c = out.data + first;
    KT_TRY(kt_gpu_gemm(ctx, g));
  }
  return KT_OK;
}

/* Activations in the forms that one call's products ask for, each made once. */
struct activations {
  kt_frows x;
  kt_int8_rows codes;
  const __nv_bfloat16 *halves;
  const void *panels;
};

enum product_way { WAY_FLOAT, WAY_INT8, WAY_GEMM, WAY_ROWS, WAY_FEW, WAY_TILES };

static product_way way_of(kt_ctx *ctx, const kt_tensor_t *w, kt_frows x) {
  const int64_t tokens = x.count;
  if (ctx->precision == KT_PRECISION_F32 || w->dtype == KT_F32) return WAY_FLOAT;
  if (kt_gpu_takes_rows(ctx, kt_weight_of(w), x.n, tokens) && (uintptr_t)x.data % 16 == 0 && x.stride % 4 == 0) return WAY_ROWS;
  if (tokens > 1 && tokens <= KT_FEW_TOKENS && kt_gpu_takes_few(kt_weight_of(w), w->shape[w->ndim - 1])) return WAY_FEW;
  if (tokens > KT_FEW_TOKENS && kt_gpu_takes_tiles(ctx, kt_weight_of(w), w->shape[w->ndim - 1])) return WAY_TILES;
  if (tokens > KT_GEMV_TOKENS && w->shape[w->ndim - 1] % 32 == 0) return WAY_GEMM;
  return takes_int8(kt_weight_of(w), w->shape[w->ndim - 1]) ? WAY_INT8 : WAY_FLOAT;
}

/* A product of the two ways that take panels. */
static kt_status_t by_panels(kt_ctx *ctx, activations *in, const kt_product &p) {
  if (in->panels == NULL) {
    void *memory = NULL;
    KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PANELS, kt_panel_bytes(in->x.count, in->x.n), &memory));
    KT_TRY(kt_gpu_to_panels(ctx, in->x, NULL, 1, in->x.count, memory));
    in->panels = memory;
  }
  kt_tiles t = {};
  t.product = p;
  t.panels = in->panels;
  t.tokens = in->x.count;
  return in->x.count <= KT_FEW_TOKENS ? kt_gpu_few(ctx, t) : kt_gpu_tiles(ctx, t);
}

static kt_status_t multiply(kt_ctx *ctx, activations *in, const kt_tensor_t *w, const float *bias, bool add, kt_frows out) {
  switch (way_of(ctx, w, in->x)) {
    case WAY_INT8:
      if (in->codes.codes == NULL) KT_TRY(kt_gpu_quantize(ctx, in->x, &in->codes));
      return kt_gpu_gemv_int8(ctx, product_of(w, bias, add, out), in->codes, in->x.count);
    case WAY_ROWS: {
      const kt_product p = product_of(w, bias, add, out);
      return kt_gpu_rows(ctx, in->x, &p, 1);
    }
    case WAY_FEW:
    case WAY_TILES: return by_panels(ctx, in, product_of(w, bias, add, out));
    case WAY_GEMM: {
      if (in->halves == NULL) {
        void *memory = NULL;
        KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_QUANT, in->x.count * in->x.n * 2, &memory));
        KT_TRY(kt_gpu_to_bf16(ctx, in->x, in->x.n, memory));
        in->halves = (const __nv_bfloat16 *)memory;
        in->codes.codes = NULL; /* the same scratch memory */
      }
      return gemm(ctx, in->halves, in->x.count, w, bias, add, out);
    }
    default:
      if (ctx->precision == KT_PRECISION_FAST && in->x.count > KT_FEW_TOKENS && kt_gpu_takes_gemm_f32(w, in->x)) return kt_gpu_gemm_f32(ctx, in->x, w, bias, add, out);
      return kt_gpu_gemv_float(ctx, product_of(w, bias, add, out), in->x);
  }
}

/* Products of one row of activations, or of its norm, by the kernels that copy weights ahead. False: not for these operands. */
static bool stream(kt_ctx *ctx, kt_frows x, const kt_norm *norm, const kt_product *products, int count, kt_status_t *status) {
  return ctx->precision == KT_PRECISION_FAST && kt_gpu_row(ctx, x, norm, products, count, status);
}

kt_status_t kt_gpu_matmul(kt_ctx *ctx, kt_frows x, const kt_tensor_t *w, const float *bias, bool add, kt_frows out) {
  kt_status_t status = KT_OK;
  const kt_product p = product_of(w, bias, add, out);
  if (stream(ctx, x, NULL, &p, 1, &status)) return status;
  activations in = {x, {}, NULL, NULL};
  return multiply(ctx, &in, w, bias, add, out);
}

extern "C" kt_status_t kt_linear(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *w, const kt_tensor_t *bias, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from, to;
  const float *b = NULL;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 2, &from));
  KT_TRY(kt_gpu_weight(ctx, "w", w, 2, from.n));
  KT_TRY(kt_gpu_vector(ctx, "bias", bias, w->shape[0], &b));
  KT_TRY(kt_gpu_result(ctx, "out", out, from.count, w->shape[0], &to));
  return kt_gpu_matmul(ctx, from, w, b, false, to);
}

/* norm(x) as the products with `weights` take it: codes at once where all do. */
static kt_status_t normed(kt_ctx *ctx, kt_frows x, const kt_norm *norm, activations *out, const kt_tensor_t *const *weights, int count) {
  *out = {x, {}, NULL, NULL};
  if (norm == NULL) return KT_OK;
  bool codes = kt_gpu_can_norm_quantize(x, *norm);
  for (int i = 0; i < count; i++) codes = codes && way_of(ctx, weights[i], x) == WAY_INT8;
  if (codes) return kt_gpu_norm_quantize(ctx, x, *norm, &out->codes);
  void *memory = NULL;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_TEMP, x.count * x.n * 4, &memory));
  out->x = {(float *)memory, x.count, x.n, x.n};
  return kt_gpu_rms_norm(ctx, x, *norm, out->x);
}

extern "C" kt_status_t kt_norm_linear(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *norm_weight, float eps, float offset,
                                      const kt_tensor_t *w, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from, to;
  kt_norm norm;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 2, &from));
  KT_TRY(kt_gpu_weight(ctx, "w", w, 2, from.n));
  KT_TRY(kt_gpu_norm(ctx, "norm_weight", norm_weight, eps, offset, from.n, &norm));
  if (norm.weight == NULL) return KT_INVALID("norm_weight is NULL");
  KT_TRY(kt_gpu_result(ctx, "out", out, from.count, w->shape[0], &to));
  kt_status_t status = KT_OK;
  const kt_product p = product_of(w, NULL, false, to);
  if (stream(ctx, from, &norm, &p, 1, &status)) return status;
  activations in;
  KT_TRY(normed(ctx, from, &norm, &in, &w, 1));
  return multiply(ctx, &in, w, NULL, false, to);
}

/* residual += rms_norm(x); one block a row. */
__global__ void add_normed_kernel(kt_frows x, kt_norm norm, kt_frows residual) {
  __shared__ float shared[32];
  const float *row = x.data + blockIdx.x * x.stride;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < x.n; i += blockDim.x) sum += row[i] * row[i];
  const float scale = 1.0f / sqrtf(kt_block_sum(sum, shared) / (float)x.n + norm.eps);
  for (int64_t i = threadIdx.x; i < x.n; i += blockDim.x) residual.data[blockIdx.x * residual.stride + i] += row[i] * scale * (norm.weight[i] + norm.offset);
}

extern "C" kt_status_t kt_linear_residual(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *w, const kt_tensor_t *bias,
                                          const kt_tensor_t *post_norm, float eps, float offset, const kt_tensor_t *residual) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from, to;
  const float *b = NULL;
  kt_norm norm;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 2, &from));
  KT_TRY(kt_gpu_weight(ctx, "w", w, 2, from.n));
  KT_TRY(kt_gpu_vector(ctx, "bias", bias, w->shape[0], &b));
  KT_TRY(kt_gpu_result(ctx, "residual", residual, from.count, w->shape[0], &to));
  KT_TRY(kt_gpu_norm(ctx, "post_norm", post_norm, eps, offset, w->shape[0], &norm));
  if (norm.weight == NULL) return kt_gpu_matmul(ctx, from, w, b, true, to);
  void *memory = NULL;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_TEMP2, to.count * to.n * 4, &memory));
  const kt_frows product = {(float *)memory, to.count, to.n, to.n};
  KT_TRY(kt_gpu_matmul(ctx, from, w, b, false, product));
  add_normed_kernel<<<(unsigned)to.count, 512, 0, ctx->stream>>>(product, norm, to);
  KT_LAUNCHED("linear_residual");
  return KT_OK;
}

extern "C" kt_status_t kt_gate_up_act(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *norm_weight, float eps, float offset,
                                      const kt_tensor_t *wg, const kt_tensor_t *wu, uint32_t act, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from, to;
  kt_norm norm;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 2, &from));
  KT_TRY(kt_gpu_weight(ctx, "wg", wg, 2, from.n));
  KT_TRY(kt_gpu_weight(ctx, "wu", wu, 2, from.n));
  if (wu->shape[0] != wg->shape[0]) return KT_INVALID("wu has %lld rows, wg %lld", (long long)wu->shape[0], (long long)wg->shape[0]);
  if (act > KT_ACT_SWIGLU_OAI) return KT_INVALID("act is %u", act);
  KT_TRY(kt_gpu_norm(ctx, "norm_weight", norm_weight, eps, offset, from.n, &norm));
  KT_TRY(kt_gpu_result(ctx, "out", out, from.count, wg->shape[0], &to));
  const kt_weight up = kt_weight_of(wu);
  kt_product both = product_of(wg, NULL, false, to);
  both.up = up;
  both.act = act;
  kt_status_t status = KT_OK;
  if (stream(ctx, from, norm.weight == NULL ? NULL : &norm, &both, 1, &status)) return status;
  activations in;
  const kt_tensor_t *weights[2] = {wg, wu};
  KT_TRY(normed(ctx, from, norm.weight == NULL ? NULL : &norm, &in, weights, 2));
  if (way_of(ctx, wg, in.x) == WAY_INT8 && way_of(ctx, wu, in.x) == WAY_INT8 && up.type == kt_weight_of(wg).type) {
    if (in.codes.codes == NULL) KT_TRY(kt_gpu_quantize(ctx, in.x, &in.codes));
    return kt_gpu_gemv_int8(ctx, both, in.codes, from.count);
  }
  void *memory = NULL;
  const product_way way = way_of(ctx, wg, in.x);
  const bool alike = up.type == both.w.type && (uintptr_t)up.data % 16 == 0;
  if (way == WAY_ROWS && alike) return kt_gpu_rows(ctx, in.x, &both, 1);
  if ((way == WAY_FEW || way == WAY_TILES) && alike) return by_panels(ctx, &in, both);
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_TEMP2, 2 * to.count * to.n * 4, &memory));
  const kt_frows gate = {(float *)memory, to.count, to.n, to.n}, other = {(float *)memory + to.count * to.n, to.count, to.n, to.n};
  KT_TRY(multiply(ctx, &in, wg, NULL, false, gate));
  KT_TRY(multiply(ctx, &in, wu, NULL, false, other));
  return kt_gpu_act_mul(ctx, gate, other, act, to);
}

/* What follows the projections: a warp a head of q, k or v. */
struct heads_job {
  float *q, *k, *v; /* [tokens][heads * dim], rows q_stride, ... apart */
  int64_t q_stride, k_stride, v_stride;
  int heads, kv_heads, k_dim, v_dim, rope_n, page_size, kind;
  uint32_t interleaved;
  bool has_norm;
  kt_norm q_norm, k_norm;
  const float *rope;
  int64_t rope_stride, limit;
  const int32_t *slots;
  char *k_cache, *v_cache;
  int64_t k_strides[3], v_strides[3]; /* page, head, slot in bytes */
};

#define HEAD_WARPS 4
#define ROPE_AHEAD 2 /* angles a lane, loaded with the values */

__global__ void finish_heads_kernel(const heads_job job) {
  extern __shared__ float memory[]; /* [HEAD_WARPS][longest dim] */
  const int lane = threadIdx.x % KT_WARP, warp = threadIdx.x / KT_WARP, longest = max(job.k_dim, job.v_dim);
  const int head = blockIdx.y * HEAD_WARPS + warp;
  const int64_t token = blockIdx.x, slot = job.slots[token]; /* slots came by copies, which no launch overtakes */
  kt_start_next();
  kt_wait_previous();
  if (head >= job.heads + 2 * job.kv_heads) return;
  const bool is_q = head < job.heads, is_k = !is_q && head < job.heads + job.kv_heads;
  const int own = is_q ? head : is_k ? head - job.heads : head - job.heads - job.kv_heads;
  const int dim = is_q || is_k ? job.k_dim : job.v_dim;
  float *at = is_q ? job.q + token * job.q_stride + own * job.k_dim : is_k ? job.k + token * job.k_stride + own * job.k_dim : job.v + token * job.v_stride + own * job.v_dim;
  float *row = memory + warp * longest;
  const float *table = job.rope + token * job.rope_stride;
  float cosines[ROPE_AHEAD], sines[ROPE_AHEAD], sum = 0;
  if (is_q || is_k)
#pragma unroll
    for (int j = 0; j < ROPE_AHEAD; j++) {
      const int i = lane + j * KT_WARP;
      if (i < job.rope_n) cosines[j] = __ldcg(table + i), sines[j] = __ldcg(table + job.rope_n + i);
    }
#pragma unroll 4
  for (int i = lane; i < dim; i += KT_WARP) {
    row[i] = __ldcg(at + i);
    sum += row[i] * row[i];
  }
  if (is_q || is_k) {
    if (job.has_norm) {
      const kt_norm norm = is_q ? job.q_norm : job.k_norm;
      const float scale = 1.0f / sqrtf(kt_warp_sum(sum) / (float)dim + norm.eps);
      for (int i = lane; i < dim; i += KT_WARP) row[i] = row[i] * scale * (norm.weight != NULL ? norm.weight[i] + norm.offset : 1.0f);
    }
    __syncwarp();
    const auto turn = [&](int i, float c, float s) {
      float *pa = job.interleaved ? row + 2 * i : row + i, *pb = job.interleaved ? row + 2 * i + 1 : row + i + job.rope_n;
      const float a = *pa, b = *pb;
      *pa = a * c - b * s;
      *pb = b * c + a * s;
    };
#pragma unroll
    for (int j = 0; j < ROPE_AHEAD; j++)
      if (lane + j * KT_WARP < job.rope_n) turn(lane + j * KT_WARP, cosines[j], sines[j]);
    for (int i = lane + ROPE_AHEAD * KT_WARP; i < job.rope_n; i += KT_WARP) turn(i, __ldcg(table + i), __ldcg(table + job.rope_n + i));
  }
  __syncwarp();
  if (is_q) {
    for (int i = lane; i < dim; i += KT_WARP) at[i] = row[i];
    return;
  }
  if (slot < 0 || slot >= job.limit) return;
  const int64_t *strides = is_k ? job.k_strides : job.v_strides;
  char *to = (is_k ? job.k_cache : job.v_cache) + slot / job.page_size * strides[0] + own * strides[1] + slot % job.page_size * strides[2];
  kt_store_row(row, dim, job.kind, to);
}

extern "C" kt_status_t kt_qkv_rope_store(kt_ctx_t *handle, const kt_qkv_args_t *a) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (a == NULL) return KT_INVALID("args are NULL");
  if (a->struct_size < sizeof *a) return KT_INVALID("args.struct_size is %u", a->struct_size);
  kt_frows x;
  KT_TRY(kt_gpu_frows(ctx, "x", a->x, 2, &x));
  KT_TRY(kt_gpu_typed(ctx, "q_out", a->q_out, 3, KT_F32));
  KT_TRY(kt_gpu_tensor(ctx, "k_cache", a->k_cache, 4));
  KT_TRY(kt_gpu_tensor(ctx, "v_cache", a->v_cache, 4));
  const kt_tensor_t *q = a->q_out, *kc = a->k_cache, *vc = a->v_cache;
  if (kt_cache_kind(kc->dtype) == CACHE_NONE) return KT_INVALID("k_cache has type %u, expected F16, BF16, F32, Q8_0 or F8_E4M3", kc->dtype);
  if (vc->dtype != kc->dtype) return KT_INVALID("v_cache has type %u, k_cache %u", vc->dtype, kc->dtype);
  const int64_t tokens = x.count, heads = q->shape[1], k_dim = q->shape[2], kv_heads = kc->shape[1], v_dim = vc->shape[3];
  KT_TRY(kt_gpu_size("q_out", q, 0, tokens));
  KT_TRY(kt_gpu_size("k_cache", kc, 3, k_dim));
  for (int i = 0; i < 3; i++) KT_TRY(kt_gpu_size("v_cache", vc, i, kc->shape[i]));
  if (q->stride[1] != k_dim * 4) return KT_INVALID("q_out heads are %lld bytes apart, expected %lld", (long long)q->stride[1], (long long)k_dim * 4);
  KT_TRY(kt_gpu_weight(ctx, "wq", a->wq, 2, x.n));
  KT_TRY(kt_gpu_weight(ctx, "wk", a->wk, 2, x.n));
  KT_TRY(kt_gpu_weight(ctx, "wv", a->wv, 2, x.n));
  KT_TRY(kt_gpu_size("wq", a->wq, 0, heads * k_dim));
  KT_TRY(kt_gpu_size("wk", a->wk, 0, kv_heads * k_dim));
  KT_TRY(kt_gpu_size("wv", a->wv, 0, kv_heads * v_dim));
  KT_TRY(kt_gpu_typed(ctx, "slot_mapping", a->slot_mapping, 1, KT_I32));
  KT_TRY(kt_gpu_size("slot_mapping", a->slot_mapping, 0, tokens));
  const float *bq = NULL, *bk = NULL, *bv = NULL;
  KT_TRY(kt_gpu_vector(ctx, "bq", a->bq, heads * k_dim, &bq));
  KT_TRY(kt_gpu_vector(ctx, "bk", a->bk, kv_heads * k_dim, &bk));
  KT_TRY(kt_gpu_vector(ctx, "bv", a->bv, kv_heads * v_dim, &bv));
  heads_job job = {};
  if (a->rope_table != NULL) {
    kt_frows table;
    KT_TRY(kt_gpu_frows(ctx, "rope_table", a->rope_table, 2, &table));
    KT_TRY(kt_gpu_size("rope_table", a->rope_table, 0, tokens));
    if (table.n > k_dim || table.n % 2 != 0) return KT_INVALID("rope_table has %lld columns for heads of %lld", (long long)table.n, (long long)k_dim);
    job.rope = table.data;
    job.rope_stride = table.stride;
    job.rope_n = (int)table.n / 2;
  }
  if (a->unit_qk_norm > 1 || (a->unit_qk_norm == 1 && (a->q_norm != NULL || a->k_norm != NULL)))
    return KT_INVALID("unit_qk_norm is %u, expected 0, or 1 without q_norm and k_norm", a->unit_qk_norm);
  if ((a->q_norm == NULL) != (a->k_norm == NULL)) return KT_INVALID("%s is NULL and the other norm is not", a->q_norm == NULL ? "q_norm" : "k_norm");
  const bool whole = a->q_norm != NULL && (a->q_norm->shape[0] != k_dim || a->k_norm->shape[0] != k_dim);
  kt_norm norm;
  KT_TRY(kt_gpu_norm(ctx, "norm_weight", a->norm_weight, a->eps, a->norm_offset, x.n, &norm));
  KT_TRY(kt_gpu_norm(ctx, "q_norm", a->q_norm, a->qk_eps, a->qk_norm_offset, whole ? heads * k_dim : k_dim, &job.q_norm));
  KT_TRY(kt_gpu_norm(ctx, "k_norm", a->k_norm, a->qk_eps, a->qk_norm_offset, whole ? kv_heads * k_dim : k_dim, &job.k_norm));
  job.has_norm = !whole && (a->q_norm != NULL || a->unit_qk_norm == 1);
  void *memory = NULL;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_TEMP2, tokens * kv_heads * (k_dim + v_dim) * 4, &memory));
  const int64_t q_stride = tokens == 1 ? heads * k_dim : q->stride[0] / 4;
  const kt_frows qr = {(float *)q->data, tokens, q_stride, heads * k_dim};
  const kt_frows kr = {(float *)memory, tokens, kv_heads * k_dim, kv_heads * k_dim};
  const kt_frows vr = {(float *)memory + tokens * kv_heads * k_dim, tokens, kv_heads * v_dim, kv_heads * v_dim};
  const kt_norm *before = norm.weight == NULL ? NULL : &norm;
  const kt_product products[3] = {product_of(a->wq, bq, false, qr), product_of(a->wk, bk, false, kr), product_of(a->wv, bv, false, vr)};
  kt_status_t status = KT_OK;
  if (!stream(ctx, x, before, products, 3, &status)) {
    activations in;
    const kt_tensor_t *weights[3] = {a->wq, a->wk, a->wv};
    KT_TRY(normed(ctx, x, before, &in, weights, 3));
    /* those of one type at once */
    int together = 0;
    while (together < 3 && way_of(ctx, weights[together], in.x) == WAY_ROWS && products[together].w.type == products[0].w.type) together++;
    if (together > 0) KT_TRY(kt_gpu_rows(ctx, in.x, products, together));
    if (together < 1) KT_TRY(multiply(ctx, &in, a->wq, bq, false, qr));
    if (together < 2) KT_TRY(multiply(ctx, &in, a->wk, bk, false, kr));
    if (together < 3) KT_TRY(multiply(ctx, &in, a->wv, bv, false, vr));
  }
  KT_TRY(status);
  if (whole) {
    KT_TRY(kt_gpu_rms_norm(ctx, qr, job.q_norm, qr));
    KT_TRY(kt_gpu_rms_norm(ctx, kr, job.k_norm, kr));
  }
  job.q = qr.data, job.k = kr.data, job.v = vr.data;
  job.q_stride = qr.stride, job.k_stride = kr.stride, job.v_stride = vr.stride;
  job.heads = (int)heads, job.kv_heads = (int)kv_heads, job.k_dim = (int)k_dim, job.v_dim = (int)v_dim;
  job.page_size = (int)kc->shape[2], job.kind = kt_cache_kind(kc->dtype), job.interleaved = a->interleaved;
  job.limit = kc->shape[0] * kc->shape[2];
  job.slots = (const int32_t *)a->slot_mapping->data;
  job.k_cache = (char *)kc->data, job.v_cache = (char *)vc->data;
  for (int i = 0; i < 3; i++) job.k_strides[i] = kc->stride[i], job.v_strides[i] = vc->stride[i];
  const size_t shared = sizeof(float) * HEAD_WARPS * (k_dim > v_dim ? k_dim : v_dim);
  return kt_launch_early(ctx, finish_heads_kernel, dim3((unsigned)tokens, (unsigned)kt_div_up(heads + 2 * kv_heads, HEAD_WARPS)), dim3(HEAD_WARPS * KT_WARP), shared, job);
}
