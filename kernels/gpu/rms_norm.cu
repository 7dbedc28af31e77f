/* kt_rms_norm, kt_add_rms_norm.
 * SHAPES       x, out [rows, n] f32, weight [n] f32
 * DEFINITION   out = x / sqrt(mean(x^2) + eps) * (weight + offset)
 * REGULARITIES n is a hidden size (1024 .. 16384), or a head's (64 .. 256); out may be x */
#include "async.cuh"

/* One block a row. With `add`, x += add first. */
__global__ void rms_norm_kernel(kt_frows x, const float *add, int64_t add_stride, kt_norm norm, kt_frows out) {
  __shared__ float shared[32];
  float *row = x.data + blockIdx.x * x.stride;
  float *to = out.data + blockIdx.x * out.stride;
  float sum = 0;
  kt_start_next();
  kt_wait_previous();
  for (int64_t i = threadIdx.x; i < x.n; i += blockDim.x) {
    float v = __ldcg(row + i);
    if (add != NULL) row[i] = v = v + __ldcg(add + blockIdx.x * add_stride + i);
    sum += v * v;
  }
  const float scale = 1.0f / sqrtf(kt_block_sum(sum, shared) / (float)x.n + norm.eps);
  for (int64_t i = threadIdx.x; i < x.n; i += blockDim.x) to[i] = row[i] * scale * (norm.weight != NULL ? norm.weight[i] + norm.offset : 1.0f);
}

/* The same where a row is at most four values a thread, 16-byte aligned: one pass over memory. */
__global__ void rms_norm4_kernel(kt_frows x, const float *add, int64_t add_stride, kt_norm norm, kt_frows out) {
  __shared__ float shared[32];
  float4 *row = (float4 *)(x.data + blockIdx.x * x.stride);
  const int64_t i = threadIdx.x;
  const bool own = 4 * i < x.n;
  const float4 w = own && norm.weight != NULL ? ((const float4 *)norm.weight)[i] : make_float4(1 - norm.offset, 1 - norm.offset, 1 - norm.offset, 1 - norm.offset);
  kt_start_next();
  kt_wait_previous();
  float4 v = own ? __ldcg(row + i) : make_float4(0, 0, 0, 0);
  if (add != NULL && own) {
    const float4 more = __ldcg((const float4 *)(add + blockIdx.x * add_stride) + i);
    row[i] = v = make_float4(v.x + more.x, v.y + more.y, v.z + more.z, v.w + more.w);
  }
  const float sum = kt_block_sum(v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w), shared);
  const float scale = 1.0f / sqrtf(sum / (float)x.n + norm.eps);
  if (own)
    ((float4 *)(out.data + blockIdx.x * out.stride))[i] =
        make_float4(v.x * scale * (w.x + norm.offset), v.y * scale * (w.y + norm.offset), v.z * scale * (w.z + norm.offset), v.w * scale * (w.w + norm.offset));
}

static bool aligned(const float *data, int64_t stride) { return (uintptr_t)data % 16 == 0 && stride % 4 == 0; }

static int threads_for(int64_t n) { return n <= 128 ? 32 : n <= 512 ? 128 : 1024; }

static kt_status_t launch(kt_ctx *ctx, kt_frows x, const float *add, int64_t add_stride, kt_norm norm, kt_frows out) {
  if (x.n % 4 == 0 && x.n > 512 && x.n <= 4096 && aligned(x.data, x.stride) && aligned(out.data, out.stride) && aligned(norm.weight, 0) && aligned(add, add_stride)) {
    return kt_launch_early(ctx, rms_norm4_kernel, dim3((unsigned)x.count), dim3((unsigned)(kt_div_up(x.n / 4, KT_WARP) * KT_WARP)), 0, x, add, add_stride, norm, out);
  }
  return kt_launch_early(ctx, rms_norm_kernel, dim3((unsigned)x.count), dim3((unsigned)threads_for(x.n)), 0, x, add, add_stride, norm, out);
}

kt_status_t kt_gpu_rms_norm(kt_ctx *ctx, kt_frows x, kt_norm norm, kt_frows out) { return launch(ctx, x, NULL, 0, norm, out); }

extern "C" kt_status_t kt_rms_norm(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *weight, float eps, float offset, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rx, ro;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 0, &rx));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  KT_TRY(kt_gpu_alike("out", out, x));
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
  KT_TRY(kt_gpu_alike("x", x, residual));
  KT_TRY(kt_gpu_alike("out", out, residual));
  kt_norm norm = {NULL, eps, offset};
  KT_TRY(kt_gpu_vector(ctx, "weight", weight, rr.n, &norm.weight));
  return launch(ctx, rr, rx.data, rx.stride, norm, ro);
}
