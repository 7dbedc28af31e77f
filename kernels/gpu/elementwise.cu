/* kt_copy, kt_add, kt_act_mul, kt_sigmoid_mul.
 * SHAPES       tensors of 1 .. 4 dimensions, outer ones strided
 * DEFINITION   see kt.h
 * REGULARITIES rows of hidden or intermediate sizes: 16 .. 32768 values */
#include "activation.cuh"
#include "blocks.cuh"

#define THREADS 256

template <typename T> __device__ __forceinline__ float to_float(T v);
template <> __device__ __forceinline__ float to_float<float>(float v) { return v; }
template <> __device__ __forceinline__ float to_float<__half>(__half v) { return __half2float(v); }
template <> __device__ __forceinline__ float to_float<__nv_bfloat16>(__nv_bfloat16 v) { return __bfloat162float(v); }
template <> __device__ __forceinline__ float to_float<int32_t>(int32_t v) { return (float)v; }
template <typename T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ __half from_float<__half>(float v) { return __float2half_rn(v); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
/* Toward zero, saturating, NaN to 0: what the hardware's conversion does. */
template <> __device__ __forceinline__ int32_t from_float<int32_t>(float v) { return __float2int_rz(v); }

template <typename S, typename D> __global__ void convert_kernel(kt_view src, kt_view out, int64_t n) {
  const S *from = (const S *)kt_row_at(src, blockIdx.y + (int64_t)blockIdx.z * 65535);
  D *to = (D *)kt_row_at(out, blockIdx.y + (int64_t)blockIdx.z * 65535);
  for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) to[i] = from_float<D>(to_float<S>(from[i]));
}

__global__ void copy_kernel(kt_view src, kt_view out, int64_t bytes, int64_t rows) {
  const int64_t row = blockIdx.y + (int64_t)blockIdx.z * 65535;
  if (row >= rows) return;
  const char *from = kt_row_at(src, row);
  char *to = kt_row_at(out, row);
  if ((((uintptr_t)from | (uintptr_t)to | (uintptr_t)bytes) & 3) == 0) {
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < bytes / 4; i += (int64_t)gridDim.x * THREADS) ((uint32_t *)to)[i] = ((const uint32_t *)from)[i];
  } else {
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < bytes; i += (int64_t)gridDim.x * THREADS) to[i] = from[i];
  }
}

template <uint32_t TYPE> __global__ void dequantize_view_kernel(kt_view src, kt_view out, int64_t n, int64_t rows) {
  const int64_t row = blockIdx.y + (int64_t)blockIdx.z * 65535;
  if (row >= rows) return;
  const uint8_t *from = (const uint8_t *)kt_row_at(src, row);
  float *to = (float *)kt_row_at(out, row);
  for (int64_t i = 8 * (blockIdx.x * (int64_t)THREADS + threadIdx.x); i < n; i += 8 * (int64_t)gridDim.x * THREADS) {
    float values[8];
    kt_load8<TYPE>(from, i, n, values);
#pragma unroll
    for (int j = 0; j < 8; j++) to[i + j] = values[j];
  }
}

static dim3 grid_of(int64_t rows, int64_t work) {
  const int64_t x = kt_div_up(work, THREADS);
  return dim3((unsigned)(x > 1024 ? 1024 : x < 1 ? 1 : x), (unsigned)(rows < 65535 ? rows : 65535), (unsigned)kt_div_up(rows, 65535));
}

template <typename S> static bool convert_to(kt_ctx *ctx, const kt_tensor_t *out, kt_view from, kt_view to, int64_t rows, int64_t n) {
  const dim3 grid = grid_of(rows, n);
  if (rows > 65535) return false;
  switch (out->dtype) {
    case KT_F32: convert_kernel<S, float><<<grid, THREADS, 0, ctx->stream>>>(from, to, n); return true;
    case KT_F16: convert_kernel<S, __half><<<grid, THREADS, 0, ctx->stream>>>(from, to, n); return true;
    case KT_BF16: convert_kernel<S, __nv_bfloat16><<<grid, THREADS, 0, ctx->stream>>>(from, to, n); return true;
    case KT_I32: convert_kernel<S, int32_t><<<grid, THREADS, 0, ctx->stream>>>(from, to, n); return true;
    default: return false;
  }
}

extern "C" kt_status_t kt_copy(kt_ctx_t *handle, const kt_tensor_t *src, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  const uint32_t ndim = src == NULL ? 0 : src->ndim;
  if (ndim < 1 || ndim > 4) return KT_INVALID("src has %u dimensions, expected 1 to 4", ndim);
  KT_TRY(kt_gpu_tensor(ctx, "src", src, ndim));
  KT_TRY(kt_gpu_tensor(ctx, "out", out, ndim));
  int64_t rows = 1;
  for (uint32_t i = 0; i < ndim; i++) {
    KT_TRY(kt_gpu_size("out", out, (int)i, src->shape[i]));
    if (i + 1 < ndim) rows *= src->shape[i];
  }
  if ((src->flags | out->flags) & KT_TENSOR_PACKED) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "copy of a packed weight");
  const int64_t n = src->shape[ndim - 1];
  const kt_view from = kt_view_of(src), to = kt_view_of(out);
  const kt_block_size block = kt_gpu_block(src->dtype);
  if (src->dtype == out->dtype) {
    const int64_t bytes = n / block.values * block.bytes;
    copy_kernel<<<grid_of(rows, bytes / 4), THREADS, 0, ctx->stream>>>(from, to, bytes, rows);
    KT_LAUNCHED("copy");
    return KT_OK;
  }
  bool done = false;
  switch (src->dtype) {
    case KT_F32: done = convert_to<float>(ctx, out, from, to, rows, n); break;
    case KT_F16: done = convert_to<__half>(ctx, out, from, to, rows, n); break;
    case KT_BF16: done = convert_to<__nv_bfloat16>(ctx, out, from, to, rows, n); break;
    case KT_I32: done = convert_to<int32_t>(ctx, out, from, to, rows, n); break;
    default:
      if (out->dtype != KT_F32) break;
#define CASE(TYPE)                                                                                                        \
  if (src->dtype == (TYPE)) {                                                                                             \
    dequantize_view_kernel<TYPE><<<grid_of(rows, n / 8), THREADS, 0, ctx->stream>>>(from, to, n, rows);                    \
    done = true;                                                                                                          \
  }
      KT_EACH_TYPE(CASE)
#undef CASE
  }
  if (!done) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "no conversion from type %u to type %u", src->dtype, out->dtype);
  KT_LAUNCHED("copy");
  return KT_OK;
}

__global__ void add_kernel(kt_frows a, kt_frows b, kt_frows out) {
  const int64_t row = blockIdx.y;
  for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < out.n; i += (int64_t)gridDim.x * THREADS)
    out.data[row * out.stride + i] = a.data[row * a.stride + i] + b.data[row * b.stride + i];
}

/* Rows in pieces of what a grid's second dimension takes. */
template <typename F> static kt_status_t for_rows(int64_t count, F launch) {
  for (int64_t first = 0; first < count; first += 65535) launch(first, count - first < 65535 ? count - first : 65535);
  KT_LAUNCHED("elementwise");
  return KT_OK;
}

static kt_frows from_row(kt_frows rows, int64_t first) {
  rows.data += first * rows.stride;
  return rows;
}

static dim3 row_grid(int64_t n, int64_t rows) { return dim3((unsigned)kt_div_up(n, THREADS), (unsigned)rows); }

extern "C" kt_status_t kt_add(kt_ctx_t *handle, const kt_tensor_t *a, const kt_tensor_t *b, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows ra, rb, ro;
  KT_TRY(kt_gpu_frows(ctx, "a", a, 0, &ra));
  KT_TRY(kt_gpu_frows(ctx, "b", b, 0, &rb));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  KT_TRY(kt_gpu_alike("b", b, a));
  KT_TRY(kt_gpu_alike("out", out, a));
  return for_rows(ra.count, [&](int64_t first, int64_t count) {
    add_kernel<<<row_grid(ra.n, count), THREADS, 0, ctx->stream>>>(from_row(ra, first), from_row(rb, first), from_row(ro, first));
  });
}

__global__ void act_mul_kernel(kt_frows gate, kt_frows up, uint32_t act, kt_frows out) {
  const int64_t row = blockIdx.y;
  for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < out.n; i += (int64_t)gridDim.x * THREADS)
    out.data[row * out.stride + i] = kt_activate(act, gate.data[row * gate.stride + i], up.data[row * up.stride + i]);
}

kt_status_t kt_gpu_act_mul(kt_ctx *ctx, kt_frows gate, kt_frows up, uint32_t act, kt_frows out) {
  return for_rows(out.count, [&](int64_t first, int64_t count) {
    act_mul_kernel<<<row_grid(out.n, count), THREADS, 0, ctx->stream>>>(from_row(gate, first), from_row(up, first), act, from_row(out, first));
  });
}

extern "C" kt_status_t kt_act_mul(kt_ctx_t *handle, const kt_tensor_t *gate, const kt_tensor_t *up, uint32_t act, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rg, ru, ro;
  KT_TRY(kt_gpu_frows(ctx, "gate", gate, 2, &rg));
  KT_TRY(kt_gpu_frows(ctx, "up", up, 2, &ru));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 2, &ro));
  if (act > KT_ACT_SWIGLU_OAI) return KT_INVALID("act is %u", act);
  KT_TRY(kt_gpu_alike("up", up, gate));
  KT_TRY(kt_gpu_alike("out", out, gate));
  return kt_gpu_act_mul(ctx, rg, ru, act, ro);
}

__global__ void sigmoid_mul_kernel(kt_view x, kt_view gate, kt_view out, int64_t n, int64_t gate_n, int64_t rows) {
  const int64_t row = blockIdx.y + (int64_t)blockIdx.z * 65535;
  if (row >= rows) return;
  const float *from = (const float *)kt_row_at(x, row), *gates = (const float *)kt_row_at(gate, row);
  float *to = (float *)kt_row_at(out, row);
  for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) to[i] = from[i] / (1.0f + expf(-gates[gate_n == 1 ? 0 : i]));
}

extern "C" kt_status_t kt_sigmoid_mul(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *gate, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  const uint32_t ndim = x == NULL ? 0 : x->ndim;
  if (ndim < 1 || ndim > 4) return KT_INVALID("x has %u dimensions, expected 1 to 4", ndim);
  KT_TRY(kt_gpu_typed(ctx, "x", x, ndim, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "gate", gate, ndim, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "out", out, ndim, KT_F32));
  KT_TRY(kt_gpu_alike("out", out, x));
  const int64_t n = x->shape[ndim - 1], gate_n = gate->shape[ndim - 1];
  for (uint32_t i = 0; i + 1 < ndim; i++) KT_TRY(kt_gpu_size("gate", gate, (int)i, x->shape[i]));
  if (gate_n != 1) KT_TRY(kt_gpu_size("gate", gate, (int)ndim - 1, n));
  const int64_t rows = kt_outer(x);
  sigmoid_mul_kernel<<<grid_of(rows, n), THREADS, 0, ctx->stream>>>(kt_view_of(x), kt_view_of(gate), kt_view_of(out), n, gate_n, rows);
  KT_LAUNCHED("sigmoid_mul");
  return KT_OK;
}
