/* kt_measure: the rates of the device itself. */
#include "gpu.h"
#include "mma.cuh"

#define THREADS 512

__global__ void read_kernel(const uint4 *data, int64_t count, uint32_t *out) {
  uint32_t sum = 0;
  const int64_t stride = (int64_t)gridDim.x * THREADS;
#pragma unroll 8
  for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < count; i += stride) {
    const uint4 v = __ldcs(data + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678) *out = sum; /* never, but the compiler does not know */
}

__global__ void fma_kernel(float *out, int steps) {
  float a[16];
#pragma unroll
  for (int i = 0; i < 16; i++) a[i] = (float)(threadIdx.x + i);
  for (int s = 0; s < steps; s++)
#pragma unroll
    for (int i = 0; i < 16; i++) a[i] = a[i] * 0.999f + 0.5f;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 16; i++) sum += a[i];
  if (sum == 0.123f) *out = sum;
}

#if KT_HAS_MMA
/* mma.m16n8k16 on registers: what the products here can reach, which is less than the newest instructions of the tensor cores. */
__global__ void bf16_kernel(float *out, int steps) {
  float c[8][4];
  uint32_t a[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u}, b[2] = {0x3c003c00u + threadIdx.x, 0x3c003c00u};
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) c[i][j] = 0;
  for (int s = 0; s < steps; s++)
#pragma unroll
    for (int i = 0; i < 8; i++)
      kt_mma(c[i], a, b[0], b[1]);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) sum += c[i][j];
  if (sum == 0.123f) *out = sum;
}

#endif

extern "C" kt_status_t kt_measure(kt_ctx_t *handle, uint32_t what, int64_t bytes, float seconds, double *out_rate) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (out_rate == NULL) return KT_INVALID("out_rate is NULL");
  *out_rate = 0;
  if (!(seconds > 0) || seconds > 60) return KT_INVALID("seconds is %g", (double)seconds);
  if (what != KT_MEASURE_READ && what != KT_MEASURE_FMA && !(KT_HAS_MMA && what == KT_MEASURE_BF16_DOT))
    return kt_gpu_fail(KT_ERR_UNSUPPORTED, "measurement %u is none of this library's", what);
  if (what == KT_MEASURE_READ && bytes < (1 << 20)) return KT_INVALID("a read of %lld bytes, at least 1 MiB", (long long)bytes);
  void *memory = NULL;
  const int64_t size = what == KT_MEASURE_READ ? bytes / 16 * 16 : 256;
  KT_TRY(kt_buffer_create(ctx, size + 256, &memory));
  uint32_t *sink = (uint32_t *)((char *)memory + size);
  cudaEvent_t start, end;
  kt_status_t status = kt_gpu_status(cudaEventCreate(&start), "cudaEventCreate");
  if (status == KT_OK) status = kt_gpu_status(cudaEventCreate(&end), "cudaEventCreate");
  const int blocks = 4 * ctx->multiprocessors, steps = 4096;
  double spent = 0;
  while (status == KT_OK && spent < seconds) {
    cudaEventRecord(start, ctx->stream);
    double work = 0;
    if (what == KT_MEASURE_READ) {
      read_kernel<<<blocks, THREADS, 0, ctx->stream>>>((const uint4 *)memory, size / 16, sink);
      work = (double)size;
    } else if (what == KT_MEASURE_FMA) {
      fma_kernel<<<blocks, THREADS, 0, ctx->stream>>>((float *)sink, steps);
      work = 2.0 * 16 * steps * blocks * THREADS;
    } else {
#if KT_HAS_MMA
      bf16_kernel<<<blocks, THREADS, 0, ctx->stream>>>((float *)sink, steps);
      work = 2.0 * 16 * 8 * 16 * 8 * steps * blocks * (THREADS / KT_WARP);
#endif
    }
    cudaEventRecord(end, ctx->stream);
    float ms = 0;
    status = kt_gpu_status(cudaEventSynchronize(end), "measure");
    if (status == KT_OK) status = kt_gpu_status(cudaEventElapsedTime(&ms, start, end), "cudaEventElapsedTime");
    if (ms <= 0) ms = 1e-3f;
    spent += ms / 1000;
    if (work / ms * 1000 > *out_rate) *out_rate = work / ms * 1000;
  }
  cudaEventDestroy(start);
  cudaEventDestroy(end);
  kt_buffer_destroy(ctx, memory, size + 256);
  return status;
}
