/* kt_layer_norm, kt_gated_rms_norm, kt_act: what models beside the llama-like ones use.
 * SHAPES       x, gate, out [rows, n] f32, weight and bias [n] f32
 * DEFINITION   see kt.h
 * REGULARITIES n is a hidden size or a head's; one block a row; out may be x */
#include "activation.cuh"
#include "gpu.h"

__global__ void layer_norm_kernel(kt_frows x, const float *weight, const float *bias, float eps, kt_frows out) {
  __shared__ float shared[32];
  const float *row = x.data + blockIdx.x * x.stride;
  float *to = out.data + blockIdx.x * out.stride;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < x.n; i += blockDim.x) sum += row[i];
  const float mean = kt_block_sum(sum, shared) / (float)x.n;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < x.n; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
  const float scale = 1.0f / sqrtf(kt_block_sum(squares, shared) / (float)x.n + eps);
  for (int64_t i = threadIdx.x; i < x.n; i += blockDim.x) to[i] = (row[i] - mean) * scale * weight[i] + (bias != NULL ? bias[i] : 0.0f);
}

__global__ void gated_rms_norm_kernel(kt_view x, kt_view gate, const float *weight, float eps, kt_view out, int64_t n) {
  __shared__ float shared[32];
  const float *row = (const float *)kt_row_at(x, blockIdx.x), *gates = (const float *)kt_row_at(gate, blockIdx.x);
  float *to = (float *)kt_row_at(out, blockIdx.x);
  float sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += row[i] * row[i];
  const float scale = 1.0f / sqrtf(kt_block_sum(sum, shared) / (float)n + eps);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) to[i] = row[i] * scale * weight[i] * (gates[i] / (1.0f + expf(-gates[i])));
}

__global__ void act_kernel(kt_frows x, uint32_t act, kt_frows out) {
  for (int64_t i = blockIdx.y * (int64_t)blockDim.x + threadIdx.x; i < x.n; i += (int64_t)gridDim.y * blockDim.x) {
    const float v = x.data[blockIdx.x * x.stride + i];
    out.data[blockIdx.x * out.stride + i] = act == KT_ACT_TANH ? tanhf(v) : kt_activate(act, v, 1.0f);
  }
}

static int threads_for(int64_t n) { return n <= 128 ? 32 : n <= 1024 ? 128 : 512; }

extern "C" kt_status_t kt_layer_norm(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *weight, const kt_tensor_t *bias, float eps, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rx, ro;
  const float *w = NULL, *b = NULL;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 0, &rx));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  KT_TRY(kt_gpu_alike("out", out, x));
  KT_TRY(kt_gpu_vector(ctx, "weight", weight, rx.n, &w));
  if (w == NULL) return KT_INVALID("weight is NULL");
  KT_TRY(kt_gpu_vector(ctx, "bias", bias, rx.n, &b));
  layer_norm_kernel<<<(unsigned)rx.count, threads_for(rx.n), 0, ctx->stream>>>(rx, w, b, eps, ro);
  KT_LAUNCHED("layer_norm");
  return KT_OK;
}

extern "C" kt_status_t kt_gated_rms_norm(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *gate, const kt_tensor_t *weight, float eps, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  const uint32_t ndim = x == NULL ? 0 : x->ndim;
  if (ndim < 1 || ndim > 4) return KT_INVALID("x has %u dimensions, expected 1 to 4", ndim);
  const float *w = NULL;
  KT_TRY(kt_gpu_typed(ctx, "x", x, ndim, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "gate", gate, ndim, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "out", out, ndim, KT_F32));
  KT_TRY(kt_gpu_alike("gate", gate, x));
  KT_TRY(kt_gpu_alike("out", out, x));
  const int64_t n = x->shape[ndim - 1];
  KT_TRY(kt_gpu_vector(ctx, "weight", weight, n, &w));
  if (w == NULL) return KT_INVALID("weight is NULL");
  gated_rms_norm_kernel<<<(unsigned)kt_outer(x), threads_for(n), 0, ctx->stream>>>(kt_view_of(x), kt_view_of(gate), w, eps, kt_view_of(out), n);
  KT_LAUNCHED("gated_rms_norm");
  return KT_OK;
}

extern "C" kt_status_t kt_act(kt_ctx_t *handle, const kt_tensor_t *x, uint32_t act, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rx, ro;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 0, &rx));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  KT_TRY(kt_gpu_alike("out", out, x));
  if (act > KT_ACT_TANH || act == KT_ACT_SWIGLU_OAI) return KT_INVALID("act is %u", act);
  act_kernel<<<dim3((unsigned)rx.count, (unsigned)kt_div_up(rx.n, 1024)), 256, 0, ctx->stream>>>(rx, act, ro);
  KT_LAUNCHED("act");
  return KT_OK;
}
