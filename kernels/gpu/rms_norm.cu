/* kt_rms_norm, kt_add_rms_norm.
 * SHAPES       x, out [rows, n] f32, weight [n] f32
 * DEFINITION   out = x / sqrt(mean(x^2) + eps) * (weight + offset)
 * REGULARITIES n is a hidden size (1024 .. 16384), or a head's (64 .. 256); out may be x */
#include "gpu.h"

/* One block a row. With `add`, x += add first. */
__global__ void rms_norm_kernel(kt_frows x, const float *add, int64_t add_stride, kt_norm norm, kt_frows out) {
  __shared__ float shared[32];
  float *row = x.data + blockIdx.x * x.stride;
  float *to = out.data + blockIdx.x * out.stride;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < x.n; i += blockDim.x) {
    float v = row[i];
    if (add != NULL) row[i] = v = v + add[blockIdx.x * add_stride + i];
    sum += v * v;
  }
  const float scale = 1.0f / sqrtf(kt_block_sum(sum, shared) / (float)x.n + norm.eps);
  for (int64_t i = threadIdx.x; i < x.n; i += blockDim.x) to[i] = row[i] * scale * (norm.weight != NULL ? norm.weight[i] + norm.offset : 1.0f);
}

static int threads_for(int64_t n) { return n <= 128 ? 32 : n <= 1024 ? 128 : n <= 4096 ? 512 : 1024; }

static kt_status_t launch(kt_ctx *ctx, kt_frows x, const float *add, int64_t add_stride, kt_norm norm, kt_frows out) {
  rms_norm_kernel<<<(unsigned)x.count, threads_for(x.n), 0, ctx->stream>>>(x, add, add_stride, norm, out);
  KT_LAUNCHED("rms_norm");
  return KT_OK;
}

kt_status_t kt_gpu_rms_norm(kt_ctx *ctx, kt_frows x, kt_norm norm, kt_frows out) { return launch(ctx, x, NULL, 0, norm, out); }

static kt_status_t same_rows(const char *name, const kt_tensor_t *t, const kt_tensor_t *like) {
  if (t->ndim != like->ndim) return KT_INVALID("%s has %u dimensions, expected %u", name, t->ndim, like->ndim);
  for (uint32_t i = 0; i < like->ndim; i++) KT_TRY(kt_gpu_size(name, t, (int)i, like->shape[i]));
  return KT_OK;
}

extern "C" kt_status_t kt_rms_norm(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *weight, float eps, float offset, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rx, ro;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 0, &rx));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  KT_TRY(same_rows("out", out, x));
  kt_norm norm = {NULL, eps, offset};
  KT_TRY(kt_gpu_vector(ctx, "weight", weight, rx.n, &norm.weight));
  return kt_gpu_rms_norm(ctx, rx, norm, ro);
}

extern "C" kt_status_t kt_add_rms_norm(kt_ctx_t *handle, const kt_tensor_t *residual, const kt_tensor_t *x, const kt_tensor_t *weight, float eps,
                                       float offset, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rr, rx, ro;
  KT_TRY(kt_gpu_frows(ctx, "residual", residual, 0, &rr));
  KT_TRY(kt_gpu_frows(ctx, "x", x, 0, &rx));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  KT_TRY(same_rows("x", x, residual));
  KT_TRY(same_rows("out", out, residual));
  kt_norm norm = {NULL, eps, offset};
  KT_TRY(kt_gpu_vector(ctx, "weight", weight, rr.n, &norm.weight));
  return launch(ctx, rr, rx.data, rx.stride, norm, ro);
}
