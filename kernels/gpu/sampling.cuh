/* Order of logits, and reductions of a block: what sampling.cu and sampling_chain.cu share. */
#ifndef KT_GPU_SAMPLING_H
#define KT_GPU_SAMPLING_H
#include <math.h>
#include "gpu.h"

#define KT_SAMPLING_THREADS 1024

/* Greater for greater logits, and for lower ids of equal ones; NaN is 0. */
__device__ __forceinline__ unsigned long long key_of(float value, uint32_t id) {
  value += 0.0f; /* no negative zero */
  const uint32_t bits = __float_as_uint(value);
  const uint32_t order = value != value ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (unsigned long long)order << 32 | (0xffffffffu - id);
}
__device__ __forceinline__ uint32_t id_of(unsigned long long key) { return 0xffffffffu - (uint32_t)key; }

template <typename T, typename F> __device__ T block_reduce(T v, F join, T *shared) {
#pragma unroll
  for (int lane = KT_WARP / 2; lane > 0; lane /= 2) v = join(v, __shfl_xor_sync(KT_FULL_MASK, v, lane));
  __syncthreads();
  if (threadIdx.x % KT_WARP == 0) shared[threadIdx.x / KT_WARP] = v;
  __syncthreads();
  v = shared[threadIdx.x % KT_WARP]; /* as many warps as lanes */
#pragma unroll
  for (int lane = KT_WARP / 2; lane > 0; lane /= 2) v = join(v, __shfl_xor_sync(KT_FULL_MASK, v, lane));
  return v;
}

typedef unsigned long long u64;
struct max_u64 {
  __device__ u64 operator()(u64 a, u64 b) const { return a > b ? a : b; }
};
struct sum_u64 {
  __device__ u64 operator()(u64 a, u64 b) const { return a + b; }
};
struct sum_f64 {
  __device__ double operator()(double a, double b) const { return a + b; }
};

/* logits [rows, vocab] of a vocabulary of at most 31 bits. */
kt_status_t kt_gpu_logits(kt_ctx *ctx, const kt_tensor_t *logits, kt_frows *rows);
kt_status_t kt_gpu_ids_out(kt_ctx *ctx, const char *name, const kt_tensor_t *out, int64_t rows);
#endif
