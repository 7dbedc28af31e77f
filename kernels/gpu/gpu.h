/* What the files of a GPU library share: contexts, descriptor checks, launches, reductions. */
#ifndef KT_GPU_H
#define KT_GPU_H
#include "../device/descriptors.h"
#include "kt_quant.h"
#include "vendor.h"

/* Scratch memory of a context by use, so that one call can hold several pieces; each grows and is kept. */
enum { KT_SCRATCH_QUANT, KT_SCRATCH_TEMP, KT_SCRATCH_TEMP2, KT_SCRATCH_WEIGHT, KT_SCRATCH_PARTIAL, KT_SCRATCH_ROUTE, KT_SCRATCH_PANELS, KT_SCRATCH_PANELS2, KT_SCRATCH_ARRIVED, KT_SCRATCH_COUNT };

struct kt_ctx {
  uint64_t magic;
  int device;
  uint32_t precision;
  int multiprocessors;
  int capability;
  int shared_bytes; /* per block, opted in */
  cudaStream_t stream;
  bool capturing;
  uint32_t scratch_moves; /* how often scratch memory was given back: graphs from before use it no more */
  void *scratch[KT_SCRATCH_COUNT];
  int64_t scratch_bytes[KT_SCRATCH_COUNT];
};

/* ---- failure ---- */
/* The status of a runtime call. */
kt_status_t kt_gpu_status(cudaError_t error, const char *what);
#define KT_CUDA(call) KT_TRY(kt_gpu_status((call), #call))
/* After a launch. */
#define KT_LAUNCHED(what) KT_TRY(kt_gpu_status(cudaPeekAtLastError(), what))

/* ---- context ---- */
/* The context behind a handle with its device made current, or NULL with the error recorded. */
kt_ctx *kt_gpu_ctx(kt_ctx_t *handle);
/* Scratch memory of at least `bytes`, valid until the next call with the same slot. Not while a graph is being made, where memory
 * of the needed size must be there from an earlier call. */
kt_status_t kt_gpu_scratch(kt_ctx *ctx, int slot, int64_t bytes, void **out);

/* ---- ops that others are made of; all in the context's stream, on checked operands ---- */
kt_status_t kt_gpu_rms_norm(kt_ctx *ctx, kt_frows x, kt_norm norm, kt_frows out);
/* out = x . w^T + bias (+ out, with `add`). */
kt_status_t kt_gpu_matmul(kt_ctx *ctx, kt_frows x, const kt_tensor_t *w, const float *bias, bool add, kt_frows out);
/* A weight operand of kt_gpu_matmul: [rows, columns] of a type that it takes. */
kt_status_t kt_gpu_weight(kt_ctx *ctx, const char *name, const kt_tensor_t *w, uint32_t ndim, int64_t columns);
kt_status_t kt_gpu_act_mul(kt_ctx *ctx, kt_frows gate, kt_frows up, uint32_t act, kt_frows out);
kt_status_t kt_gpu_rope(kt_ctx *ctx, kt_heads x, const float *table, int64_t table_stride, int columns, uint32_t interleaved);
kt_status_t kt_gpu_store_kv(kt_ctx *ctx, kt_heads k, kt_heads v, const int32_t *slots, const kt_tensor_t *k_cache, const kt_tensor_t *v_cache);
/* Values of `count` rows of any weight type, or packed, as f32 or bf16 [count, n] contiguous. */
kt_status_t kt_gpu_dequantize(kt_ctx *ctx, const kt_tensor_t *w, int64_t first_row, int64_t count, uint32_t dtype, void *out);

#ifdef __CUDACC__
__device__ __forceinline__ char *kt_row_at(const kt_view &v, int64_t row) {
  const int64_t c = row % v.shape[2], b = row / v.shape[2] % v.shape[1], a = row / v.shape[2] / v.shape[1];
  return v.data + a * v.stride[0] + b * v.stride[1] + c * v.stride[2];
}
__device__ __forceinline__ float kt_warp_sum(float v) {
#pragma unroll
  for (int lane = KT_WARP / 2; lane > 0; lane /= 2) v += __shfl_xor_sync(KT_FULL_MASK, v, lane);
  return v;
}
__device__ __forceinline__ float kt_warp_max(float v) {
#pragma unroll
  for (int lane = KT_WARP / 2; lane > 0; lane /= 2) v = fmaxf(v, __shfl_xor_sync(KT_FULL_MASK, v, lane));
  return v;
}
/* Over all threads of a block of whole warps; `shared` [32]. Every thread gets the sum. */
__device__ __forceinline__ float kt_block_sum(float v, float *shared) {
  const int warp = threadIdx.x / KT_WARP, warps = (blockDim.x + KT_WARP - 1) / KT_WARP;
  v = kt_warp_sum(v);
  if (warps == 1) return v;
  __syncthreads();
  if (threadIdx.x % KT_WARP == 0) shared[warp] = v;
  __syncthreads();
  v = (int)(threadIdx.x % KT_WARP) < warps ? shared[threadIdx.x % KT_WARP] : 0.0f;
  return kt_warp_sum(v);
}
#endif
#endif
