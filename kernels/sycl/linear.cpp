/* kt_linear, kt_norm_linear, kt_linear_residual, kt_gate_up_act, kt_qkv_rope_store: norms, products (products.cpp) and what follows them,
 * one after the other; see kt.h. */
#include "products.hpp"

/* x itself where there is no weight to norm it by. */
static kt_status_t normed(kt_ctx *ctx, kt_frows x, kt_norm norm, kt_frows *out) {
  *out = x;
  if (norm.weight == NULL) return KT_OK;
  void *memory = NULL;
  KT_TRY(kt_sycl_scratch(ctx, KT_SCRATCH_NORMED, x.count * x.n * 4, &memory));
  *out = {(float *)memory, x.count, x.n, x.n};
  return kt_sycl_rms_norm(ctx, x, norm, *out);
}

static kt_status_t multiply(kt_ctx *ctx, kt_frows x, const kt_tensor_t *w, const float *bias, bool add, kt_frows out) {
  return kt_sycl_multiply(ctx, kt_sycl_product_of(w, bias, add, x, out));
}

extern "C" kt_status_t kt_linear(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *w, const kt_tensor_t *bias, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from, to;
  const float *b = NULL;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 2, &from));
  KT_TRY(kt_sycl_weight(ctx, "w", w, 2, from.n));
  KT_TRY(kt_gpu_vector(ctx, "bias", bias, w->shape[0], &b));
  KT_TRY(kt_gpu_result(ctx, "out", out, from.count, w->shape[0], &to));
  return multiply(ctx, from, w, b, false, to);
}

extern "C" kt_status_t kt_norm_linear(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *norm_weight, float eps, float offset,
                                      const kt_tensor_t *w, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from, to, in;
  kt_norm norm;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 2, &from));
  KT_TRY(kt_sycl_weight(ctx, "w", w, 2, from.n));
  KT_TRY(kt_gpu_norm(ctx, "norm_weight", norm_weight, eps, offset, from.n, &norm));
  if (norm.weight == NULL) return KT_INVALID("norm_weight is NULL");
  KT_TRY(kt_gpu_result(ctx, "out", out, from.count, w->shape[0], &to));
  KT_TRY(normed(ctx, from, norm, &in));
  return multiply(ctx, in, w, NULL, false, to);
}

extern "C" kt_status_t kt_linear_residual(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *w, const kt_tensor_t *bias,
                                          const kt_tensor_t *post_norm, float eps, float offset, const kt_tensor_t *residual) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from, to;
  const float *b = NULL;
  kt_norm norm;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 2, &from));
  KT_TRY(kt_sycl_weight(ctx, "w", w, 2, from.n));
  KT_TRY(kt_gpu_vector(ctx, "bias", bias, w->shape[0], &b));
  KT_TRY(kt_gpu_result(ctx, "residual", residual, from.count, w->shape[0], &to));
  KT_TRY(kt_gpu_norm(ctx, "post_norm", post_norm, eps, offset, w->shape[0], &norm));
  if (norm.weight == NULL) return multiply(ctx, from, w, b, true, to);
  void *memory = NULL;
  KT_TRY(kt_sycl_scratch(ctx, KT_SCRATCH_PRODUCT, to.count * to.n * 4, &memory));
  const kt_frows product = {(float *)memory, to.count, to.n, to.n};
  KT_TRY(multiply(ctx, from, w, b, false, product));
  return kt_sycl_add_normed(ctx, product, norm, to);
}

extern "C" kt_status_t kt_gate_up_act(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *norm_weight, float eps, float offset,
                                      const kt_tensor_t *wg, const kt_tensor_t *wu, uint32_t act, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from, to, in;
  kt_norm norm;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 2, &from));
  KT_TRY(kt_sycl_weight(ctx, "wg", wg, 2, from.n));
  KT_TRY(kt_sycl_weight(ctx, "wu", wu, 2, from.n));
  if (wu->shape[0] != wg->shape[0]) return KT_INVALID("wu has %lld rows, wg %lld", (long long)wu->shape[0], (long long)wg->shape[0]);
  if (act > KT_ACT_SWIGLU_OAI) return KT_INVALID("act is %u", act);
  KT_TRY(kt_gpu_norm(ctx, "norm_weight", norm_weight, eps, offset, from.n, &norm));
  KT_TRY(kt_gpu_result(ctx, "out", out, from.count, wg->shape[0], &to));
  KT_TRY(normed(ctx, from, norm, &in));
  void *memory = NULL;
  KT_TRY(kt_sycl_scratch(ctx, KT_SCRATCH_PRODUCT, 2 * to.count * to.n * 4, &memory));
  const kt_frows gate = {(float *)memory, to.count, to.n, to.n}, up = {(float *)memory + to.count * to.n, to.count, to.n, to.n};
  KT_TRY(multiply(ctx, in, wg, NULL, false, gate));
  KT_TRY(multiply(ctx, in, wu, NULL, false, up));
  return kt_sycl_act_mul(ctx, gate, up, act, to);
}

/* Heads of rows [tokens, heads * dim] as rows of their own. */
static kt_frows each_head(kt_frows rows, int64_t heads) { return {rows.data, rows.count * heads, rows.n / heads, rows.n / heads}; }

/* The norm over all heads, or over each. */
static kt_status_t norm_heads(kt_ctx *ctx, kt_frows rows, int64_t heads, kt_norm norm, bool whole) {
  const kt_frows parts = whole ? rows : each_head(rows, heads);
  return kt_sycl_rms_norm(ctx, parts, norm, parts);
}

static kt_heads heads_of(kt_frows rows, int64_t heads) { return {rows.data, rows.count, heads, rows.n / heads, rows.n, rows.n / heads}; }

extern "C" kt_status_t kt_qkv_rope_store(kt_ctx_t *handle, const kt_qkv_args_t *a) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (a == NULL) return KT_INVALID("args are NULL");
  if (a->struct_size < sizeof *a) return KT_INVALID("args.struct_size is %u", a->struct_size);
  kt_frows x, in, table = {};
  KT_TRY(kt_gpu_frows(ctx, "x", a->x, 2, &x));
  KT_TRY(kt_gpu_typed(ctx, "q_out", a->q_out, 3, KT_F32));
  KT_TRY(kt_sycl_check_caches(ctx, a->k_cache, a->v_cache));
  const kt_tensor_t *q = a->q_out;
  const int64_t tokens = x.count, heads = q->shape[1], k_dim = q->shape[2], kv_heads = a->k_cache->shape[1], v_dim = a->v_cache->shape[3];
  KT_TRY(kt_gpu_size("q_out", q, 0, tokens));
  KT_TRY(kt_gpu_size("k_cache", a->k_cache, 3, k_dim));
  if (q->stride[1] != k_dim * 4 || (tokens > 1 && q->stride[0] != heads * k_dim * 4)) return KT_INVALID("q_out is strided");
  KT_TRY(kt_sycl_weight(ctx, "wq", a->wq, 2, x.n));
  KT_TRY(kt_sycl_weight(ctx, "wk", a->wk, 2, x.n));
  KT_TRY(kt_sycl_weight(ctx, "wv", a->wv, 2, x.n));
  KT_TRY(kt_gpu_size("wq", a->wq, 0, heads * k_dim));
  KT_TRY(kt_gpu_size("wk", a->wk, 0, kv_heads * k_dim));
  KT_TRY(kt_gpu_size("wv", a->wv, 0, kv_heads * v_dim));
  KT_TRY(kt_gpu_typed(ctx, "slot_mapping", a->slot_mapping, 1, KT_I32));
  KT_TRY(kt_gpu_size("slot_mapping", a->slot_mapping, 0, tokens));
  const float *bq = NULL, *bk = NULL, *bv = NULL;
  KT_TRY(kt_gpu_vector(ctx, "bq", a->bq, heads * k_dim, &bq));
  KT_TRY(kt_gpu_vector(ctx, "bk", a->bk, kv_heads * k_dim, &bk));
  KT_TRY(kt_gpu_vector(ctx, "bv", a->bv, kv_heads * v_dim, &bv));
  if (a->rope_table != NULL) {
    KT_TRY(kt_gpu_frows(ctx, "rope_table", a->rope_table, 2, &table));
    KT_TRY(kt_gpu_size("rope_table", a->rope_table, 0, tokens));
    if (table.n > k_dim || table.n % 2 != 0) return KT_INVALID("rope_table has %lld columns for heads of %lld", (long long)table.n, (long long)k_dim);
  }
  if (a->unit_qk_norm > 1 || (a->unit_qk_norm == 1 && (a->q_norm != NULL || a->k_norm != NULL)))
    return KT_INVALID("unit_qk_norm is %u, expected 0, or 1 without q_norm and k_norm", a->unit_qk_norm);
  if ((a->q_norm == NULL) != (a->k_norm == NULL)) return KT_INVALID("%s is NULL and the other norm is not", a->q_norm == NULL ? "q_norm" : "k_norm");
  const bool whole = a->q_norm != NULL && (a->q_norm->shape[0] != k_dim || a->k_norm->shape[0] != k_dim);
  kt_norm norm, q_norm, k_norm;
  KT_TRY(kt_gpu_norm(ctx, "norm_weight", a->norm_weight, a->eps, a->norm_offset, x.n, &norm));
  KT_TRY(kt_gpu_norm(ctx, "q_norm", a->q_norm, a->qk_eps, a->qk_norm_offset, whole ? heads * k_dim : k_dim, &q_norm));
  KT_TRY(kt_gpu_norm(ctx, "k_norm", a->k_norm, a->qk_eps, a->qk_norm_offset, whole ? kv_heads * k_dim : k_dim, &k_norm));
  void *memory = NULL;
  KT_TRY(kt_sycl_scratch(ctx, KT_SCRATCH_PRODUCT, tokens * kv_heads * (k_dim + v_dim) * 4, &memory));
  const kt_frows qr = {(float *)q->data, tokens, heads * k_dim, heads * k_dim};
  const kt_frows kr = {(float *)memory, tokens, kv_heads * k_dim, kv_heads * k_dim};
  const kt_frows vr = {(float *)memory + tokens * kv_heads * k_dim, tokens, kv_heads * v_dim, kv_heads * v_dim};
  KT_TRY(normed(ctx, x, norm, &in));
  KT_TRY(multiply(ctx, in, a->wq, bq, false, qr));
  KT_TRY(multiply(ctx, in, a->wk, bk, false, kr));
  KT_TRY(multiply(ctx, in, a->wv, bv, false, vr));
  if (a->q_norm != NULL || a->unit_qk_norm == 1) {
    KT_TRY(norm_heads(ctx, qr, heads, q_norm, whole));
    KT_TRY(norm_heads(ctx, kr, kv_heads, k_norm, whole));
  }
  if (table.data != NULL) {
    KT_TRY(kt_sycl_rope(ctx, heads_of(qr, heads), table.data, table.stride, table.n, a->interleaved));
    KT_TRY(kt_sycl_rope(ctx, heads_of(kr, kv_heads), table.data, table.stride, table.n, a->interleaved));
  }
  return kt_sycl_store_kv(ctx, heads_of(kr, kv_heads), heads_of(vr, kv_heads), (const int32_t *)a->slot_mapping->data, a->k_cache, a->v_cache);
}
