/* kt_rope_table, kt_rope.
 * SHAPES       positions [tokens] i32, inv_freq [1 or tokens, n] f32, table [tokens, 2n] f32, x [tokens, heads, dim] f32
 * DEFINITION   table = [cos(p f) scale ..., sin(p f) scale ...]; (a, b) -> (a cos - b sin, b cos + a sin) for pairs (i, i + n), or
 *              (2i, 2i + 1) when interleaved
 * REGULARITIES n is half a head dimension: 4 .. 128 */
#include "gpu.h"

/* The angle is the f32 product, as models were trained with; its cosine and sine are taken exactly. */
__global__ void rope_table_kernel(const int32_t *positions, const float *inv_freq, int64_t freq_stride, float scale, float *out, int64_t out_stride, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    double s, c;
    sincos((double)__fmul_rn((float)positions[blockIdx.x], inv_freq[blockIdx.x * freq_stride + i]), &s, &c);
    out[blockIdx.x * out_stride + i] = (float)c * scale;
    out[blockIdx.x * out_stride + n + i] = (float)s * scale;
  }
}

extern "C" kt_status_t kt_rope_table(kt_ctx_t *handle, const kt_tensor_t *positions, const kt_tensor_t *inv_freq, float scale, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(kt_gpu_typed(ctx, "positions", positions, 1, KT_I32));
  kt_frows freq, to;
  KT_TRY(kt_gpu_frows(ctx, "inv_freq", inv_freq, 2, &freq));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 2, &to));
  if (freq.count != 1) KT_TRY(kt_gpu_size("inv_freq", inv_freq, 0, positions->shape[0]));
  KT_TRY(kt_gpu_size("out", out, 0, positions->shape[0]));
  KT_TRY(kt_gpu_size("out", out, 1, 2 * freq.n));
  rope_table_kernel<<<(unsigned)to.count, 64, 0, ctx->stream>>>((const int32_t *)positions->data, freq.data, freq.stride, scale, to.data, to.stride, (int)freq.n);
  KT_LAUNCHED("rope_table");
  return KT_OK;
}

__global__ void rope_kernel(kt_heads x, const float *table, int64_t table_stride, int n, uint32_t interleaved) {
  const float *row = table + blockIdx.x * table_stride;
  for (int64_t item = threadIdx.x; item < x.heads * n; item += blockDim.x) {
    const int64_t head = item / n, i = item % n;
    float *at = x.data + blockIdx.x * x.token_stride + head * x.head_stride;
    float *pa = interleaved ? at + 2 * i : at + i, *pb = interleaved ? at + 2 * i + 1 : at + i + n;
    const float a = *pa, b = *pb, c = row[i], s = row[n + i];
    *pa = a * c - b * s;
    *pb = b * c + a * s;
  }
}

kt_status_t kt_gpu_rope(kt_ctx *ctx, kt_heads x, const float *table, int64_t table_stride, int columns, uint32_t interleaved) {
  rope_kernel<<<(unsigned)x.tokens, 256, 0, ctx->stream>>>(x, table, table_stride, columns / 2, interleaved);
  KT_LAUNCHED("rope");
  return KT_OK;
}

extern "C" kt_status_t kt_rope(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *table, uint32_t interleaved) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(kt_gpu_typed(ctx, "x", x, 3, KT_F32));
  kt_frows rows;
  KT_TRY(kt_gpu_frows(ctx, "table", table, 2, &rows));
  KT_TRY(kt_gpu_size("table", table, 0, x->shape[0]));
  if (rows.n > x->shape[2] || rows.n % 2 != 0) return KT_INVALID("table has rows of %lld values for heads of %lld", (long long)rows.n, (long long)x->shape[2]);
  if (interleaved > 1) return KT_INVALID("interleaved is %u", interleaved);
  const kt_heads heads = kt_heads_of(x);
  return kt_gpu_rope(ctx, heads, rows.data, rows.stride, (int)rows.n, interleaved);
}
