/* Products of many rows of activations, by tensor cores.
 * SHAPES       A [m, n] and B [rows, n] bf16, C [m, rows] f32
 * DEFINITION   C = A . B^T (+ bias) (+ C), sums in f32
 * REGULARITIES n is a multiple of 32; m is a chunk of a prompt, 9 .. 4096; 128 x 128 of C a block, 32 columns at a time through
 *              four stages of shared memory, each warp 64 x 32 by mma.m16n8k16 */
#include "mma.cuh"
#include "products.cuh"

#if KT_HAS_MMA
#define TILE_M KT_GEMM_ROWS
#define TILE_R 128
#define TILE_N 32
#define STAGES 4
#define THREADS 256
#define STAGE_BYTES ((TILE_M + TILE_R) * TILE_N * 2)

/* 16-byte piece `piece` of a row of 64 bytes: pieces are shuffled so that eight rows' same pieces lie in different banks. */
__device__ __forceinline__ uint32_t swizzled(int row, int piece) { return (uint32_t)(row * 64 + ((piece ^ (row >> 1 & 3)) << 4)); }

__device__ __forceinline__ void copy_async(uint32_t shared, const void *from, bool wanted) {
  const int bytes = wanted ? 16 : 0; /* the rest is zeros */
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes));
}

__global__ void __launch_bounds__(THREADS) gemm_kernel(const kt_gemm g) {
  extern __shared__ __align__(128) uint8_t memory[];
  const uint32_t base = (uint32_t)__cvta_generic_to_shared(memory);
  const int thread = threadIdx.x, warp = thread / KT_WARP, lane = thread % KT_WARP;
  const int64_t row0 = (int64_t)blockIdx.x * TILE_R;
  int64_t m0 = (int64_t)blockIdx.y * TILE_M, count = g.m - m0, expert = 0;
  if (g.tiles != NULL) {
    const kt_gemm_tile tile = g.tiles[blockIdx.y];
    if (tile.count == 0) return;
    m0 = tile.first, count = tile.count, expert = tile.expert;
  }
  const __nv_bfloat16 *b = g.b + expert * g.rows * g.n;
  /* each thread copies two pieces of A and two of B a stage: rows thread / 4 and thread / 4 + 64 */
  const int piece = thread % 4;
  const __nv_bfloat16 *a_from[2], *b_from[2];
  bool a_wanted[2], b_wanted[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int row = thread / 4 + 64 * i;
    a_wanted[i] = row < count;
    const int64_t index = a_wanted[i] ? m0 + row : m0;
    a_from[i] = g.a + (g.list != NULL ? g.list[index] / g.a_divisor : index) * g.n + piece * 8;
    b_wanted[i] = row0 + row < g.rows;
    b_from[i] = b + (b_wanted[i] ? row0 + row : 0) * g.n + piece * 8;
  }
  const int steps = (int)(g.n / TILE_N);
  const auto fetch = [&](int step) {
    if (step < steps) {
      const uint32_t stage = base + (uint32_t)(step % STAGES * STAGE_BYTES);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int row = thread / 4 + 64 * i;
        copy_async(stage + swizzled(row, piece), a_from[i] + (int64_t)step * TILE_N, a_wanted[i]);
        copy_async(stage + TILE_M * TILE_N * 2 + swizzled(row, piece), b_from[i] + (int64_t)step * TILE_N, b_wanted[i]);
      }
    }
    asm volatile("cp.async.commit_group;");
  };
#pragma unroll
  for (int step = 0; step < STAGES - 1; step++) fetch(step);
  const int warp_m = warp / 4 * 64, warp_r = warp % 4 * 32;
  float acc[4][4][4];
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int k = 0; k < 4; k++) acc[i][j][k] = 0;
  for (int step = 0; step < steps; step++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
    __syncthreads();
    fetch(step + STAGES - 1);
    const uint32_t a_tile = base + (uint32_t)(step % STAGES * STAGE_BYTES), b_tile = a_tile + TILE_M * TILE_N * 2;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      uint32_t a[4][4], bb[2][4];
#pragma unroll
      for (int i = 0; i < 4; i++) kt_load_matrix(a[i], a_tile + swizzled(warp_m + 16 * i + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; j++) kt_load_matrix(bb[j], b_tile + swizzled(warp_r + 16 * j + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) kt_mma(acc[i][j], a[i], bb[j / 2][j % 2 * 2], bb[j / 2][j % 2 * 2 + 1]);
    }
  }
  asm volatile("cp.async.wait_all;");
  const float *bias = g.bias != NULL ? g.bias + expert * g.rows : NULL;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = warp_m + 16 * i + 8 * half + lane / 4;
      if (row >= count) continue;
      float *to = g.c + (g.list != NULL ? g.list[m0 + row] : m0 + row) * g.c_stride;
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const int64_t column = row0 + warp_r + 8 * j + lane % 4 * 2 + k;
          if (column >= g.rows) continue;
          float value = acc[i][j][2 * half + k];
          if (bias != NULL) value += bias[column];
          if (g.add) value += to[column];
          to[column] = value;
        }
    }
}

kt_status_t kt_gpu_gemm(kt_ctx *ctx, const kt_gemm &g) {
  KT_CUDA(cudaFuncSetAttribute(gemm_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, STAGES * STAGE_BYTES));
  const int64_t tiles = g.tiles != NULL ? g.num_tiles : kt_div_up(g.m, TILE_M);
  for (int64_t first = 0; first < tiles; first += 65535) {
    if (first > 0) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "a product of %lld rows", (long long)g.m);
    gemm_kernel<<<dim3((unsigned)kt_div_up(g.rows, TILE_R), (unsigned)tiles), THREADS, STAGES * STAGE_BYTES, ctx->stream>>>(g);
    KT_LAUNCHED("gemm");
  }
  return KT_OK;
}
#else
#define PLAIN_TILE 64
#define PLAIN_COLUMNS 16
#define PLAIN_THREADS 256

/* Without NVIDIA's tensor cores: 64 x 64 of C a block, 4 x 4 a thread; the tiles of lists are taken in two halves. */
__global__ void __launch_bounds__(PLAIN_THREADS) plain_gemm_kernel(const kt_gemm g) {
  __shared__ float a_tile[PLAIN_COLUMNS][PLAIN_TILE + 1], b_tile[PLAIN_COLUMNS][PLAIN_TILE + 1];
  const int thread = threadIdx.x, tm = thread / 16 * 4, tr = thread % 16 * 4;
  const int64_t row0 = (int64_t)blockIdx.x * PLAIN_TILE;
  int64_t m0 = (int64_t)blockIdx.y * PLAIN_TILE, count = g.m - m0, expert = 0;
  if (g.tiles != NULL) {
    const kt_gemm_tile tile = g.tiles[blockIdx.y / 2];
    const int skipped = blockIdx.y % 2 * PLAIN_TILE;
    if (tile.count <= skipped) return;
    m0 = tile.first + skipped, count = tile.count - skipped, expert = tile.expert;
  }
  const __nv_bfloat16 *b = g.b + expert * g.rows * g.n;
  float acc[4][4];
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) acc[i][j] = 0;
  for (int64_t column = 0; column < g.n; column += PLAIN_COLUMNS) {
    for (int i = thread; i < PLAIN_TILE * PLAIN_COLUMNS; i += PLAIN_THREADS) {
      const int row = i / PLAIN_COLUMNS, k = i % PLAIN_COLUMNS;
      const int64_t index = row < count ? m0 + row : m0, from = g.list != NULL ? g.list[index] / g.a_divisor : index;
      a_tile[k][row] = row < count ? __bfloat162float(g.a[from * g.n + column + k]) : 0.0f;
      b_tile[k][row] = row0 + row < g.rows ? __bfloat162float(b[(row0 + row) * g.n + column + k]) : 0.0f;
    }
    __syncthreads();
    for (int k = 0; k < PLAIN_COLUMNS; k++)
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) acc[i][j] += a_tile[k][tm + i] * b_tile[k][tr + j];
    __syncthreads();
  }
  for (int i = 0; i < 4; i++) {
    if (tm + i >= count) break;
    float *to = g.c + (g.list != NULL ? g.list[m0 + tm + i] : m0 + tm + i) * g.c_stride;
    for (int j = 0; j < 4; j++) {
      const int64_t column = row0 + tr + j;
      if (column >= g.rows) break;
      float value = acc[i][j] + (g.bias != NULL ? g.bias[expert * g.rows + column] : 0.0f);
      if (g.add) value += to[column];
      to[column] = value;
    }
  }
}

kt_status_t kt_gpu_gemm(kt_ctx *ctx, const kt_gemm &g) {
  const int64_t tiles = g.tiles != NULL ? 2 * g.num_tiles : kt_div_up(g.m, PLAIN_TILE);
  if (tiles > 65535) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "a product of %lld rows", (long long)g.m);
  plain_gemm_kernel<<<dim3((unsigned)kt_div_up(g.rows, PLAIN_TILE), (unsigned)tiles), PLAIN_THREADS, 0, ctx->stream>>>(g);
  KT_LAUNCHED("gemm");
  return KT_OK;
}
#endif
