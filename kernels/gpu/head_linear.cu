/* kt_head_linear.
 * SHAPES       x [tokens, heads, in] f32, w [heads, out, in], or [heads, in, out] if transposed, out [tokens, heads, out] f32
 * DEFINITION   out[t][h] = x[t][h] . w[h]^T, or x[t][h] . w[h]
 * REGULARITIES latent attention: in and out 128 and 512; 16 .. 128 heads. TOKENS tokens a block share the weights they read */
#include "blocks.cuh"

#define THREADS 128
#define TOKENS 8

struct head_job {
  kt_heads x;
  const uint8_t *w;
  int64_t head_stride, row_stride, out_n, out_token_stride, out_head_stride;
  float *out;
};

/* A warp an output: rows of w are dotted with x. */
template <uint32_t TYPE> __global__ void head_linear_kernel(const head_job job) {
  const int lane = threadIdx.x % KT_WARP, warp = threadIdx.x / KT_WARP;
  const int64_t head = blockIdx.y, row = blockIdx.x * (int64_t)(THREADS / KT_WARP) + warp, first = blockIdx.z * (int64_t)TOKENS;
  if (row >= job.out_n) return;
  const uint8_t *w = job.w + head * job.head_stride + row * job.row_stride;
  const int count = (int)min((int64_t)TOKENS, job.x.tokens - first);
  float acc[TOKENS];
#pragma unroll
  for (int t = 0; t < TOKENS; t++) acc[t] = 0;
  const int64_t n = job.x.dim;
  for (int64_t col = 8 * lane; col + 8 <= n; col += 8 * KT_WARP) {
    float values[8];
    kt_load8<TYPE>(w, col, n, values);
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
      if (t >= count) break;
      const float *from = job.x.data + (first + t) * job.x.token_stride + head * job.x.head_stride + col;
#pragma unroll
      for (int j = 0; j < 8; j++) acc[t] += values[j] * from[j];
    }
  }
  if constexpr (TYPE == KT_F32 || TYPE == KT_F16 || TYPE == KT_BF16) {
    const int64_t col = n / 8 * 8 + lane;
    if (col < n) {
      float value;
      if constexpr (TYPE == KT_F32) value = ((const float *)w)[col];
      else if constexpr (TYPE == KT_F16) value = __half2float(((const __half *)w)[col]);
      else value = __uint_as_float((uint32_t)((const uint16_t *)w)[col] << 16);
      for (int t = 0; t < count; t++) acc[t] += value * job.x.data[(first + t) * job.x.token_stride + head * job.x.head_stride + col];
    }
  }
#pragma unroll
  for (int t = 0; t < TOKENS; t++) {
    const float sum = kt_warp_sum(acc[t]);
    if (lane == 0 && t < count) job.out[(first + t) * job.out_token_stride + head * job.out_head_stride + row] = sum;
  }
}

/* A thread eight outputs: rows of w are added, each times its value of x. */
template <uint32_t TYPE> __global__ void head_linear_transposed_kernel(const head_job job) {
  const int64_t head = blockIdx.y, col = 8 * (blockIdx.x * (int64_t)THREADS + threadIdx.x), token = blockIdx.z;
  if (col >= job.out_n) return;
  const float *x = job.x.data + token * job.x.token_stride + head * job.x.head_stride;
  float *to = job.out + token * job.out_token_stride + head * job.out_head_stride;
  const uint8_t *w = job.w + head * job.head_stride;
  const int64_t left = job.out_n - col;
  float acc[8];
#pragma unroll
  for (int j = 0; j < 8; j++) acc[j] = 0;
  for (int64_t i = 0; i < job.x.dim; i++) {
    const uint8_t *row = w + i * job.row_stride;
    float values[8];
    if (left >= 8) {
      kt_load8<TYPE>(row, col, job.out_n, values);
    } else {
      for (int j = 0; j < 8; j++) {
        values[j] = 0;
        if (j >= left) continue;
        if constexpr (TYPE == KT_F32) values[j] = ((const float *)row)[col + j];
        else if constexpr (TYPE == KT_F16) values[j] = __half2float(((const __half *)row)[col + j]);
        else if constexpr (TYPE == KT_BF16) values[j] = __uint_as_float((uint32_t)((const uint16_t *)row)[col + j] << 16);
      }
    }
    const float v = x[i];
#pragma unroll
    for (int j = 0; j < 8; j++) acc[j] += v * values[j];
  }
  for (int j = 0; j < 8 && j < left; j++) to[col + j] = acc[j];
}

extern "C" kt_status_t kt_head_linear(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *w, uint32_t transposed, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(kt_gpu_typed(ctx, "x", x, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "out", out, 3, KT_F32));
  KT_TRY(kt_gpu_tensor(ctx, "w", w, 3));
  if (transposed > 1) return KT_INVALID("transposed is %u", transposed);
  if (w->flags & KT_TENSOR_PACKED) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "w is packed");
  const int64_t tokens = x->shape[0], heads = x->shape[1], n = x->shape[2], out_n = w->shape[transposed ? 2 : 1];
  KT_TRY(kt_gpu_size("w", w, 0, heads));
  KT_TRY(kt_gpu_size("w", w, transposed ? 1 : 2, n));
  KT_TRY(kt_gpu_size("out", out, 0, tokens));
  KT_TRY(kt_gpu_size("out", out, 1, heads));
  KT_TRY(kt_gpu_size("out", out, 2, out_n));
  head_job job = {{(float *)x->data, tokens, heads, n, x->stride[0] / 4, x->stride[1] / 4}, (const uint8_t *)w->data, w->stride[0], w->stride[1], out_n,
                  out->stride[0] / 4, out->stride[1] / 4, (float *)out->data};
  const int64_t per_launch = transposed ? 65535 : 65535 * (int64_t)TOKENS;
  for (int64_t first = 0; first < tokens; first += per_launch) {
    const int64_t count = tokens - first < per_launch ? tokens - first : per_launch;
    head_job part = job;
    part.x.data += first * job.x.token_stride;
    part.x.tokens = count;
    part.out += first * job.out_token_stride;
    bool known = false;
#define CASE(TYPE)                                                                                                                               \
  if (w->dtype == (TYPE)) {                                                                                                                      \
    if (transposed) head_linear_transposed_kernel<TYPE><<<dim3((unsigned)kt_div_up(out_n, 8 * THREADS), (unsigned)heads, (unsigned)count), THREADS, 0, ctx->stream>>>(part); \
    else head_linear_kernel<TYPE><<<dim3((unsigned)kt_div_up(out_n, THREADS / KT_WARP), (unsigned)heads, (unsigned)kt_div_up(count, TOKENS)), THREADS, 0, ctx->stream>>>(part); \
    known = true;                                                                                                                                \
  }
    KT_EACH_TYPE(CASE)
#undef CASE
    if (!known) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "type %u is not read here", w->dtype);
    KT_LAUNCHED("head_linear");
  }
  return KT_OK;
}
