/* kt_rope_table, kt_rope.
 * SHAPES       positions [tokens] i32, inv_freq [1 or tokens, n] f32, table [tokens, 2n] f32, x [tokens, heads, dim] f32
 * DEFINITION   table = [cos(p f) scale ..., sin(p f) scale ...]; (a, b) -> (a cos - b sin, b cos + a sin) for pairs (i, i + n), or
 *              (2i, 2i + 1) when interleaved
 * REGULARITIES n is half a head dimension: 4 .. 128 */
#include "sycl.hpp"

extern "C" kt_status_t kt_rope_table(kt_ctx_t *handle, const kt_tensor_t *positions, const kt_tensor_t *inv_freq, float scale, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(kt_gpu_typed(ctx, "positions", positions, 1, KT_I32));
  kt_frows freq, to;
  KT_TRY(kt_gpu_frows(ctx, "inv_freq", inv_freq, 2, &freq));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 2, &to));
  if (freq.count != 1) KT_TRY(kt_gpu_size("inv_freq", inv_freq, 0, positions->shape[0]));
  KT_TRY(kt_gpu_size("out", out, 0, positions->shape[0]));
  KT_TRY(kt_gpu_size("out", out, 1, 2 * freq.n));
  const int32_t *at = (const int32_t *)positions->data;
  return kt_sycl_each(ctx, "rope_table", to.count * freq.n, [=](int64_t item) {
    const int64_t token = item / freq.n, i = item % freq.n;
    const float angle = (float)at[token] * freq.data[token * freq.stride + i];
    to.data[token * to.stride + i] = sycl::cos(angle) * scale;
    to.data[token * to.stride + freq.n + i] = sycl::sin(angle) * scale;
  });
}

kt_status_t kt_sycl_rope(kt_ctx *ctx, kt_heads x, const float *table, int64_t table_stride, int64_t columns, uint32_t interleaved) {
  const int64_t n = columns / 2;
  return kt_sycl_each(ctx, "rope", x.tokens * x.heads * n, [=](int64_t item) {
    const int64_t i = item % n, head = item / n % x.heads, token = item / n / x.heads;
    float *at = x.data + token * x.token_stride + head * x.head_stride;
    float *pa = interleaved ? at + 2 * i : at + i, *pb = interleaved ? at + 2 * i + 1 : at + i + n;
    const float a = *pa, b = *pb, c = table[token * table_stride + i], s = table[token * table_stride + n + i];
    *pa = a * c - b * s;
    *pb = b * c + a * s;
  });
}

extern "C" kt_status_t kt_rope(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *table, uint32_t interleaved) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(kt_gpu_typed(ctx, "x", x, 3, KT_F32));
  kt_frows rows;
  KT_TRY(kt_gpu_frows(ctx, "table", table, 2, &rows));
  KT_TRY(kt_gpu_size("table", table, 0, x->shape[0]));
  if (rows.n > x->shape[2] || rows.n % 2 != 0) return KT_INVALID("table has rows of %lld values for heads of %lld", (long long)rows.n, (long long)x->shape[2]);
  if (interleaved > 1) return KT_INVALID("interleaved is %u", interleaved);
  const kt_heads heads = kt_heads_of(x);
  return kt_sycl_rope(ctx, heads, rows.data, rows.stride, rows.n, interleaved);
}
