/* Products of many rows of activations with F32 weights (routers), in f32.
 * SHAPES       x [m, n], w [rows, n], C [m, rows] f32
 * DEFINITION   C = x . w^T (+ bias) (+ C)
 * REGULARITIES rows is 64 .. 512, m a chunk of a prompt: 32 x 64 of C a block of 128 threads, 4 x 4 a thread, 32 columns at a time */
#include "async.cuh"
#include "products.cuh"

#define TILE_M 32
#define TILE_R 64
#define TILE_N 32
#define THREADS 128

__global__ void __launch_bounds__(THREADS) gemm_f32_kernel(kt_frows x, const float *w, int64_t w_stride, int rows, const float *bias, bool add, kt_frows out) {
  __shared__ float a[2][TILE_N][TILE_M + 4], b[2][TILE_N][TILE_R + 4];
  const int thread = threadIdx.x, row0 = (int)blockIdx.x * TILE_R, n = (int)x.n;
  const int64_t m0 = (int64_t)blockIdx.y * TILE_M;
  kt_wait_previous();
  kt_start_next();
  float4 next_a[2], next_b[4];
  const auto fetch = [&](int column) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int piece = i * THREADS + thread, at = column + piece % 8 * 4;
      const int64_t row = m0 + piece / 8;
      next_a[i] = row < x.count && at < n ? __ldcg((const float4 *)(x.data + row * x.stride + at)) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int piece = i * THREADS + thread, at = column + piece % 8 * 4, row = row0 + piece / 8;
      next_b[i] = row < rows && at < n ? __ldg((const float4 *)(w + row * w_stride + at)) : make_float4(0, 0, 0, 0);
    }
  };
  const auto store = [&](int stage) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int piece = i * THREADS + thread, k = piece % 8 * 4, row = piece / 8;
      a[stage][k][row] = next_a[i].x, a[stage][k + 1][row] = next_a[i].y, a[stage][k + 2][row] = next_a[i].z, a[stage][k + 3][row] = next_a[i].w;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int piece = i * THREADS + thread, k = piece % 8 * 4, row = piece / 8;
      b[stage][k][row] = next_b[i].x, b[stage][k + 1][row] = next_b[i].y, b[stage][k + 2][row] = next_b[i].z, b[stage][k + 3][row] = next_b[i].w;
    }
  };
  float acc[4][4] = {};
  const int tm = thread / 16 * 4, tr = thread % 16 * 4, steps = (n + TILE_N - 1) / TILE_N;
  fetch(0);
  store(0);
  __syncthreads();
  for (int step = 0; step < steps; step++) {
    if (step + 1 < steps) fetch((step + 1) * TILE_N);
#pragma unroll 8
    for (int k = 0; k < TILE_N; k++) {
      const float4 u = *(const float4 *)&a[step % 2][k][tm], v = *(const float4 *)&b[step % 2][k][tr];
      const float us[4] = {u.x, u.y, u.z, u.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] += us[i] * vs[j];
    }
    if (step + 1 < steps) store((step + 1) % 2);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int64_t row = m0 + tm + i;
      const int column = row0 + tr + j;
      if (row >= x.count || column >= rows) continue;
      float *to = out.data + row * out.stride + column;
      const float value = acc[i][j] + (bias != NULL ? bias[column] : 0.0f);
      *to = add ? __ldcg(to) + value : value;
    }
}

bool kt_gpu_takes_gemm_f32(const kt_tensor_t *w, kt_frows x) {
  return w->dtype == KT_F32 && x.n % 4 == 0 && x.stride % 4 == 0 && w->stride[0] % 16 == 0 && ((uintptr_t)x.data | (uintptr_t)w->data) % 16 == 0;
}

kt_status_t kt_gpu_gemm_f32(kt_ctx *ctx, kt_frows x, const kt_tensor_t *w, const float *bias, bool add, kt_frows out) {
  const int64_t rows = w->shape[0];
  for (int64_t first = 0; first < x.count; first += 65535 * TILE_M) {
    const int64_t count = x.count - first < 65535 * TILE_M ? x.count - first : 65535 * TILE_M;
    const kt_frows from = {x.data + first * x.stride, count, x.stride, x.n}, to = {out.data + first * out.stride, count, out.stride, out.n};
    KT_TRY(kt_launch_early(ctx, gemm_f32_kernel, dim3((unsigned)kt_div_up(rows, TILE_R), (unsigned)kt_div_up(count, TILE_M)), dim3(THREADS), 0, from, (const float *)w->data,
                           w->stride[0] / 4, (int)rows, bias, add, to));
  }
  return KT_OK;
}
