/* Products of a few rows of activations, 2 .. 32, that read packed weights once, by mma.m16n8k16.
 * SHAPES       x as panels of bf16, w [rows, n] packed (or a stack, an expert a tile), C [tokens, rows] f32 or panels of bf16
 * DEFINITION   C = x . w^T (+ bias) (+ C), or act(x . w^T + bias) * (x . up^T + up_bias)
 * REGULARITIES n is a multiple of 128. A tile is 128 rows of weights (64 each of gate and up), a warp 16 of them; weights and activations come
 *              by cp.async a few units ahead. Dense: all blocks have equal shares of all tiles' units; the last of the blocks that
 *              share a tile adds their sums, in the same order each time. Experts: tiles by turns */
#include "activation.cuh"
#include "async.cuh"
#include "mma.cuh"
#include "products.cuh"
#include "shares.cuh"

kt_status_t kt_gpu_counters(kt_ctx *ctx, int64_t count, uint32_t **out) {
  void *memory = NULL;
  const int64_t before = ctx->scratch_bytes[KT_SCRATCH_ARRIVED];
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_ARRIVED, kt_div_up(count * 4, 65536) * 65536, &memory));
  if (ctx->scratch_bytes[KT_SCRATCH_ARRIVED] != before) KT_CUDA(cudaMemsetAsync(memory, 0, (size_t)ctx->scratch_bytes[KT_SCRATCH_ARRIVED], ctx->stream));
  *out = (uint32_t *)memory;
  return KT_OK;
}

#if KT_HAS_MMA
#define WARPS 8
#define THREADS (WARPS * KT_WARP)
#define PITCH (THREADS * 16)
#define TILE_ROWS 128
#define BLOCKS_EACH 2 /* a multiprocessor */

struct few_args {
  const uint8_t *w, *up; /* up: of DUAL kernels */
  int64_t matrix_stride;
  int row_bytes, rows, n, row_tiles;
  const uint8_t *panels;
  int tokens;
  const kt_gemm_tile *tiles; /* or NULL: dense */
  int num_tiles;
  const int32_t *list; /* position -> row of out, or NULL: the position */
  const float *bias, *up_bias;
  bool add;
  uint32_t act;
  float *out;
  int64_t out_stride;
  uint8_t *out_panels;
  float *partial;    /* [blocks][2][N][TILE_ROWS] */
  uint32_t *arrived; /* [row_tiles], zeros between launches */
};

/* A stretch of a tile's units that a block computes. */
struct stretch {
  int tile, begin, end; /* of row tiles times expert tiles; units */
};

/* Dense: block b has units share(b) .. share(b + 1) of all tiles' in order. */
__device__ __forceinline__ int64_t share_of(int64_t all, int block) { return all * block / (int64_t)gridDim.x; }

template <bool DUAL> struct walk {
  int units, next; /* next: of experts' tiles */
  int64_t at, end;
  __device__ __forceinline__ void start(const few_args &a) {
    units = a.n / KT_UNIT;
    next = (int)blockIdx.x;
    const int64_t all = (int64_t)a.row_tiles * units;
    at = share_of(all, (int)blockIdx.x), end = share_of(all, (int)blockIdx.x + 1);
  }
  __device__ __forceinline__ bool step(const few_args &a, stretch *out) {
    if (a.tiles != NULL) {
      const int all = a.num_tiles * a.row_tiles;
      while (next < all && __ldcg(&a.tiles[next / a.row_tiles].count) == 0) next += (int)gridDim.x;
      if (next >= all) return false;
      *out = {next, 0, units};
      next += (int)gridDim.x;
      return true;
    }
    if (at >= end) return false;
    const int tile = (int)(at / units), begin = (int)(at - (int64_t)tile * units);
    const int64_t last = (int64_t)(tile + 1) * units < end ? (int64_t)(tile + 1) * units : end;
    *out = {tile, begin, begin + (int)(last - at)};
    at = last;
    return true;
  }
};

template <uint32_t TYPE, bool DUAL, int N, int DEPTH> __global__ void __launch_bounds__(THREADS, BLOCKS_EACH) few_kernel(const __grid_constant__ few_args a) {
  constexpr int CHUNKS = kt_share<TYPE, PITCH>::CHUNKS, X_BYTES = N * 256, SLOT = CHUNKS * PITCH + X_BYTES;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ uint32_t is_last;
  float *sums = (float *)(memory + DEPTH * SLOT); /* [N][TILE_ROWS] */
  const uint32_t base = (uint32_t)__cvta_generic_to_shared(memory);
  const int thread = threadIdx.x, warp = thread / KT_WARP, lane = thread % KT_WARP, q = lane % 4;
  /* what is copied next */
  walk<DUAL> ahead;
  stretch copy = {0, 0, 0};
  bool more = true;
  const uint8_t *rows[2], *x_from = NULL;
  int fetched = 0;
  const auto point = [&]() {
    int expert = 0, first = 0;
    if (a.tiles != NULL) {
      const int4 tile = __ldcg((const int4 *)(a.tiles + copy.tile / a.row_tiles));
      expert = tile.x, first = tile.y;
    }
    const int row_tile = copy.tile % a.row_tiles, row0 = (DUAL ? row_tile * 64 + warp % 4 * 16 : row_tile * TILE_ROWS + warp * 16) + lane / 4;
    const uint8_t *w = (DUAL && warp >= 4 ? a.up : a.w) + expert * a.matrix_stride;
#pragma unroll
    for (int r = 0; r < 2; r++) rows[r] = w + (int64_t)min(row0 + 8 * r, a.rows - 1) * a.row_bytes;
    x_from = a.panels + (int64_t)(first / 64) * (a.n / 64) * KT_PANEL_BYTES + first % 64 * 128;
  };
  const auto advance = [&]() {
    if (++copy.begin < copy.end) return;
    more = ahead.step(a, &copy);
    if (more) point();
  };
  const auto copy_weights = [&](int slot) { kt_share<TYPE, PITCH>::fetch(base + (uint32_t)(slot * SLOT) + thread * 16, rows, copy.begin, a.n, q); };
  const auto copy_x = [&](int slot, int unit, const uint8_t *from) {
#pragma unroll
    for (int i = 0; i < (X_BYTES / 16 + THREADS - 1) / THREADS; i++) {
      const int piece = i * THREADS + thread; /* [2][N][8] */
      if (X_BYTES / 16 % THREADS != 0 && piece >= X_BYTES / 16) break;
      const int half = piece / (N * 8), rest = piece % (N * 8);
      kt_copy16(base + (uint32_t)(slot * SLOT + CHUNKS * PITCH + piece * 16), from + (int64_t)(2 * unit + half) * KT_PANEL_BYTES + rest * 16);
    }
  };
  const bool early = a.tiles == NULL; /* weights are known before the kernel ahead ends */
  if (!early) kt_wait_previous();
  ahead.start(a);
  more = ahead.step(a, &copy);
  if (more) point();
  {
    /* the first copies: weights, then activations */
    walk<DUAL> first_walk = ahead;
    stretch first_copy = copy;
    const bool first_more = more;
    for (int i = 0; i < DEPTH - 1 && more; i++) copy_weights(i), advance();
    if (early) kt_wait_previous();
    kt_start_next();
    ahead = first_walk, copy = first_copy, more = first_more;
    if (more) point();
    for (int i = 0; i < DEPTH - 1; i++) {
      if (more) copy_x(i, copy.begin, x_from), advance();
      asm volatile("cp.async.commit_group;");
    }
    fetched = DEPTH - 1;
  }
  walk<DUAL> own;
  own.start(a);
  stretch part;
  int used = 0;
  while (own.step(a, &part)) {
    float acc[N / 8][4];
#pragma unroll
    for (int g = 0; g < N / 8; g++) acc[g][0] = acc[g][1] = acc[g][2] = acc[g][3] = 0;
    for (int unit = part.begin; unit < part.end; unit++) {
      asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 2) : "memory");
      __syncthreads();
      /* all have computed with the slot before this one */
      if (more) {
        const int slot = fetched % DEPTH;
        copy_weights(slot);
        copy_x(slot, copy.begin, x_from);
        advance();
      }
      fetched++;
      asm volatile("cp.async.commit_group;");
      const int slot = used++ % DEPTH;
      const uint8_t *mine = memory + slot * SLOT + thread * 16;
      const uint32_t x = base + (uint32_t)(slot * SLOT + CHUNKS * PITCH);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        uint32_t left[16];
        kt_share<TYPE, PITCH>::left(mine, h, unit, left);
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
          for (int g = 0; g < N / 8; g++) {
            uint32_t right[4];
            const int row = 8 * g + lane % 8, piece = 4 * k + lane / 8;
            kt_load_matrix(right, x + (uint32_t)(h * N * 128 + row * 128 + ((piece ^ (row & 7)) << 4)));
            kt_mma(acc[g], left + 8 * k, right[0], right[1]);
            kt_mma(acc[g], left + 8 * k + 4, right[2], right[3]);
          }
      }
    }
    /* sums [token][row of the tile] */
#pragma unroll
    for (int g = 0; g < N / 8; g++)
#pragma unroll
      for (int i = 0; i < 4; i++) sums[(8 * g + 2 * q + i % 2) * TILE_ROWS + warp * 16 + lane / 4 + i / 2 * 8] = acc[g][i];
    __syncthreads();
    const int units = a.n / KT_UNIT;
    const bool whole = part.end - part.begin == units;
    int blocks = 1, first_block = 0;
    if (!whole) {
      /* another block has the rest */
      const int64_t all = (int64_t)a.row_tiles * units, begin = (int64_t)part.tile * units;
      float *to = a.partial + ((int64_t)blockIdx.x * 2 + (part.begin == 0 ? 1 : 0)) * N * TILE_ROWS;
      for (int i = thread; i < N * TILE_ROWS / 4; i += THREADS) __stcg((float4 *)to + i, ((const float4 *)sums)[i]);
      first_block = (int)(((begin + 1) * gridDim.x - 1) / all);
      blocks = (int)(((begin + units) * gridDim.x - 1) / all) - first_block + 1;
      __threadfence();
      __syncthreads();
      if (thread == 0) {
        is_last = atomicAdd(a.arrived + part.tile, 1u) + 1 == (uint32_t)blocks;
        if (is_last) a.arrived[part.tile] = 0;
      }
      __syncthreads();
      if (!is_last) continue;
      __threadfence();
      for (int i = thread; i < N * TILE_ROWS / 4; i += THREADS) {
        float4 sum = make_float4(0, 0, 0, 0);
        for (int b = 0; b < blocks; b++) {
          const int slot = share_of(all, first_block + b) > begin ? 0 : 1;
          const float4 v = __ldcg((const float4 *)(a.partial + ((int64_t)(first_block + b) * 2 + slot) * N * TILE_ROWS) + i);
          sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        ((float4 *)sums)[i] = sum;
      }
      __syncthreads();
    }
    int expert = 0, first = 0, count = a.tokens;
    if (a.tiles != NULL) {
      const int4 tile = __ldcg((const int4 *)(a.tiles + part.tile / a.row_tiles));
      expert = tile.x, first = tile.y, count = tile.z;
    }
    constexpr int WIDTH = DUAL ? 64 : TILE_ROWS;
    const int row0 = part.tile % a.row_tiles * WIDTH;
    for (int i = thread; i < N * WIDTH; i += THREADS) {
      const int token = i / WIDTH, own_row = i % WIDTH, row = row0 + own_row;
      if (token >= count || row >= a.rows) continue;
      float value = sums[token * TILE_ROWS + own_row] + (a.bias != NULL ? __ldg(a.bias + (int64_t)expert * a.rows + row) : 0.0f);
      if (DUAL) value = kt_activate<true>(a.act, value, sums[token * TILE_ROWS + 64 + own_row] + (a.up_bias != NULL ? __ldg(a.up_bias + (int64_t)expert * a.rows + row) : 0.0f));
      const int position = first + token;
      if (a.out_panels != NULL) {
        const int column = kt_panel_column(row % 64);
        uint8_t *to = a.out_panels + ((int64_t)(position / 64) * (a.rows / 64) + row / 64) * KT_PANEL_BYTES + position % 64 * 128;
        *(__nv_bfloat16 *)(to + ((column >> 3) ^ (position & 7)) * 16 + (column & 7) * 2) = __float2bfloat16_rn(value);
      } else {
        float *to = a.out + (int64_t)(a.list != NULL ? __ldcg(a.list + position) : position) * a.out_stride + row;
        *to = a.add ? __ldcg(to) + value : value;
      }
    }
    __syncthreads();
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
}

bool kt_gpu_takes_few(const kt_weight &w, int64_t n) {
  const uint32_t type = w.type & ~KT_PACKED_BIT;
  return (w.type & KT_PACKED_BIT) && (type == KT_Q4_K || type == KT_Q6_K || type == KT_Q8_0 || type == KT_Q4_0) && n % KT_UNIT == 0 && (uintptr_t)w.data % 16 == 0;
}

template <uint32_t TYPE, bool DUAL, int N> static kt_status_t launch(kt_ctx *ctx, const few_args &a, int64_t blocks) {
  constexpr int CHUNKS = kt_share<TYPE, PITCH>::CHUNKS, DEPTH = N == 32 || CHUNKS == 6 ? 3 : 4, SHARED = DEPTH * (CHUNKS * PITCH + N * 256) + N * TILE_ROWS * 4;
  KT_CUDA(cudaFuncSetAttribute(few_kernel<TYPE, DUAL, N, DEPTH>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED));
  return kt_launch_early(ctx, few_kernel<TYPE, DUAL, N, DEPTH>, dim3((unsigned)blocks), dim3(THREADS), SHARED, a);
}

template <uint32_t TYPE, bool DUAL> static kt_status_t of_width(kt_ctx *ctx, const few_args &a, int width, int64_t blocks) {
  return width <= 8 ? launch<TYPE, DUAL, 8>(ctx, a, blocks) : width <= 16 ? launch<TYPE, DUAL, 16>(ctx, a, blocks) : launch<TYPE, DUAL, 32>(ctx, a, blocks);
}

template <uint32_t TYPE> static kt_status_t of_kind(kt_ctx *ctx, const few_args &a, int width, int64_t blocks) {
  return a.up != NULL ? of_width<TYPE, true>(ctx, a, width, blocks) : of_width<TYPE, false>(ctx, a, width, blocks);
}

kt_status_t kt_gpu_few(kt_ctx *ctx, const kt_tiles &t) {
  const kt_product &p = t.product;
  few_args a = {};
  a.w = p.w.data, a.up = p.up.data;
  a.matrix_stride = t.matrix_stride;
  a.row_bytes = (int)p.w.row_stride;
  a.rows = (int)p.rows, a.n = (int)p.n;
  a.row_tiles = (int)kt_div_up(p.rows, p.up.data != NULL ? 64 : TILE_ROWS);
  a.panels = (const uint8_t *)t.panels;
  a.tokens = (int)t.tokens;
  a.tiles = t.tiles;
  a.num_tiles = (int)t.num_tiles;
  a.list = t.list;
  a.bias = p.bias, a.up_bias = p.up_bias;
  a.add = p.add, a.act = p.act;
  a.out = p.out, a.out_stride = p.out_stride;
  a.out_panels = (uint8_t *)t.out_panels;
  const int width = t.tiles != NULL ? t.width : (int)t.tokens;
  const int64_t all = t.tiles != NULL ? (int64_t)a.num_tiles * a.row_tiles : (int64_t)a.row_tiles * (a.n / KT_UNIT), room = (int64_t)ctx->multiprocessors * BLOCKS_EACH;
  const int64_t blocks = all < room ? all : room;
  if (t.tiles == NULL) {
    void *memory = NULL;
    KT_TRY(kt_gpu_counters(ctx, a.row_tiles, &a.arrived));
    KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PARTIAL, blocks * 2 * 32 * TILE_ROWS * 4, &memory));
    a.partial = (float *)memory;
  }
  switch (p.w.type & ~KT_PACKED_BIT) {
    case KT_Q4_K: return of_kind<KT_Q4_K>(ctx, a, width, blocks);
    case KT_Q6_K: return of_kind<KT_Q6_K>(ctx, a, width, blocks);
    case KT_Q8_0: return of_kind<KT_Q8_0>(ctx, a, width, blocks);
    case KT_Q4_0: return of_kind<KT_Q4_0>(ctx, a, width, blocks);
    default: return kt_gpu_fail(KT_ERR_UNSUPPORTED, "type %u is not read for a few tokens", p.w.type);
  }
}
#else
kt_status_t kt_gpu_few(kt_ctx *, const kt_tiles &) { return kt_gpu_fail(KT_ERR_INTERNAL, "tensor cores are not here"); }
bool kt_gpu_takes_few(const kt_weight &, int64_t) { return false; }
#endif
