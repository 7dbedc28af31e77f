/* Products of many rows of activations by warpgroups (sm_90a), straight from packed weights.
 * SHAPES       x as panels of bf16, w [rows, n] packed (or a stack, an expert a tile), C [tokens, rows] f32 or panels of bf16
 * DEFINITION   C = x . w^T (+ bias) (+ C), or act(x . w^T + bias) * (x . up^T + up_bias)
 * REGULARITIES n is a multiple of 128. Weights are the left operand, made bf16 in registers, 64 rows a warpgroup; activations the right one,
 *              up to 256 tokens a tile. A panel is 64 tokens x 64 columns, 8 KiB, as shared memory wants it: columns are permuted within
 *              32 so that eight neighbouring codes of a row are one thread's. Threads copy their own weights three units of 128
 *              columns ahead; one warp copies panels. Blocks stay and take tiles by turns */
#include "activation.cuh"
#include "async.cuh"
#include "products.cuh"
#include "shares.cuh"
#include "wgmma.cuh"

#if KT_HAS_MMA
#define STAGES 4
#define STAGE_BYTES (4 * KT_PANEL_BYTES)
#define DEPTH 3
#define CHUNKS 6 /* of 16 bytes: the most that a thread holds of a unit */
#define CONSUMERS 256
#define THREADS (CONSUMERS + 128)
#define PITCH (CONSUMERS * 16)
#define RING_BYTES (DEPTH * CHUNKS * PITCH)
#define EXCHANGE_BYTES (2 * 16 * 128 * 4)
#define SHARED_BYTES (1024 + STAGES * STAGE_BYTES + RING_BYTES + EXCHANGE_BYTES + KT_PANEL_BYTES)

/* ---- panels ---- */
/* A thread 16 bytes: 8 columns of a row. list: position -> row of x times divisor, -1 for none; NULL: the same. */
__global__ void to_panels_kernel(kt_frows x, const int32_t *list, int divisor, int positions, uint8_t *panels) {
  kt_wait_previous();
  kt_start_next();
  const int pieces = (int)(x.n / 8), at = (int)(blockIdx.x * blockDim.x + threadIdx.x), position = (int)blockIdx.y + (int)blockIdx.z * 32768;
  if (at >= pieces || position >= positions) return;
  const int row = list != NULL ? __ldcg(list + position) : position < x.count ? position : -1;
  if (row < 0) return;
  const float *from = x.data + (int64_t)(list != NULL ? row / divisor : row) * x.stride;
  const int step = at / 8, piece = at % 8, column = step * 64 + piece / 4 * 32 + piece / 2 % 2 * 4 + piece % 2 * 2;
  uint4 out;
  uint32_t *words = (uint32_t *)&out;
#pragma unroll
  for (int q = 0; q < 4; q++) {
    const float2 v = __ldcg((const float2 *)(from + column + 8 * q));
    const __nv_bfloat162 both = __floats2bfloat162_rn(v.x, v.y);
    words[q] = *(const uint32_t *)&both;
  }
  const int64_t panel = (int64_t)(position / 64) * (x.n / 64) + step;
  *(uint4 *)(panels + panel * KT_PANEL_BYTES + position % 64 * 128 + (piece ^ (position & 7)) * 16) = out;
}

int64_t kt_panel_bytes(int64_t positions, int64_t n) { return kt_div_up(positions, 256) * 4 * (n / 64) * KT_PANEL_BYTES; }

kt_status_t kt_gpu_to_panels(kt_ctx *ctx, kt_frows x, const int32_t *list, int divisor, int64_t positions, void *panels) {
  return kt_launch_early(ctx, to_panels_kernel, dim3((unsigned)kt_div_up(x.n / 8, 256), (unsigned)(positions < 32768 ? positions : 32768), (unsigned)kt_div_up(positions, 32768)), dim3(256), 0, x, list, divisor, (int)positions, (uint8_t *)panels);
}

/* ---- tiles ---- */
struct tile_args {
  const uint8_t *w, *up; /* up: of DUAL kernels */
  int64_t matrix_stride;
  int row_bytes, rows, n, row_tiles;
  const uint8_t *panels;
  const kt_gemm_tile *tiles; /* or NULL: dense */
  int num_tiles, tokens, tile_tokens;
  const int32_t *list; /* position -> row of out, or NULL: the position */
  const float *bias, *up_bias;
  bool add;
  uint32_t act;
  float *out;
  int64_t out_stride;
  uint8_t *out_panels; /* of DUAL kernels instead of out: rows is a multiple of 64 */
};

__device__ __forceinline__ kt_gemm_tile tile_at(const tile_args &a, int index) {
  if (a.tiles == NULL) {
    const int first = index * a.tile_tokens;
    return {0, first, min(a.tile_tokens, a.tokens - first)};
  }
  const int4 tile = __ldcg((const int4 *)(a.tiles + index));
  return {tile.x, tile.y, tile.z};
}

#ifdef KT_HAS_WGMMA
__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory"); }

struct places {
  uint32_t full, empty, stages, ring;
  const uint8_t *ring_data;
  float *exchange;
  uint8_t *panel;
};

/* What a consumer keeps from tile to tile. */
struct consumer {
  int step;                /* of all tiles so far */
  int next_tile, next_unit, slot; /* weights to copy next */
  const uint8_t *rows[2];  /* of that tile */
};

template <bool DUAL> __device__ __forceinline__ void point(const tile_args &a, consumer &c) {
  const int warpgroup = threadIdx.x / 128, lane = threadIdx.x % KT_WARP, row0 = threadIdx.x % 128 / KT_WARP * 16 + lane / 4;
  const kt_gemm_tile tile = tile_at(a, c.next_tile / a.row_tiles);
  const int first = c.next_tile % a.row_tiles * (DUAL ? 64 : 128) + (DUAL ? 0 : warpgroup * 64) + row0;
  const uint8_t *w = (DUAL && warpgroup == 1 ? a.up : a.w) + tile.expert * a.matrix_stride;
#pragma unroll
  for (int r = 0; r < 2; r++) c.rows[r] = w + (int64_t)min(first + 8 * r, a.rows - 1) * a.row_bytes;
}

/* The next tile of this block that has tokens, or the number of all. */
__device__ __forceinline__ int tile_from(const tile_args &a, int tile) {
  const int all = a.num_tiles * a.row_tiles;
  while (tile < all && tile_at(a, tile / a.row_tiles).count == 0) tile += (int)gridDim.x;
  return min(tile, all);
}

template <uint32_t TYPE, bool DUAL> __device__ __forceinline__ void fetch(const tile_args &a, consumer &c, const places &at) {
  if (c.next_tile < a.num_tiles * a.row_tiles) {
    kt_share<TYPE, PITCH>::fetch(at.ring + (uint32_t)(c.slot * CHUNKS * PITCH) + threadIdx.x * 16, c.rows, c.next_unit, a.n, threadIdx.x % 4);
    if (++c.next_unit == a.n / KT_UNIT) {
      c.next_unit = 0;
      c.next_tile = tile_from(a, c.next_tile + (int)gridDim.x);
      if (c.next_tile < a.num_tiles * a.row_tiles) point<DUAL>(a, c);
    }
  }
  asm volatile("cp.async.commit_group;");
  if (++c.slot == DEPTH) c.slot = 0;
}

template <uint32_t TYPE, bool DUAL, int N> __device__ __forceinline__ void compute(const tile_args &a, consumer &c, const places &at, int index, const kt_gemm_tile tile) {
  const int thread = threadIdx.x % 128, warpgroup = threadIdx.x / 128, lane = threadIdx.x % KT_WARP;
  float acc[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; i++) acc[i] = 0;
  uint32_t left[2][16];
  const int units = a.n / KT_UNIT;
  for (int unit = 0; unit < units; unit++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 1) : "memory");
    const uint8_t *mine = at.ring_data + c.slot * CHUNKS * PITCH + threadIdx.x * 16;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      kt_share<TYPE, PITCH>::left(mine, h, unit, left[h]);
      if (h == 1) fetch<TYPE, DUAL>(a, c, at);
      const int stage = c.step % STAGES;
      kt_barrier_wait(at.full + 8 * stage, (uint32_t)(c.step / STAGES & 1));
      const uint64_t right = kt_wgmma_rows(at.stages + (uint32_t)(stage * STAGE_BYTES));
      kt_wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; k++) kt_wgmma<N>(acc, left[h] + 4 * k, right + 2 * k);
      kt_wgmma_commit();
      kt_wgmma_wait<1>();
      /* the products of the step before are done */
      if ((unit > 0 || h > 0) && thread == 0) kt_barrier_arrive(at.empty + 8 * ((c.step + STAGES - 1) % STAGES));
      c.step++;
    }
  }
  kt_wgmma_wait<0>();
  if (thread == 0) kt_barrier_arrive(at.empty + 8 * ((c.step + STAGES - 1) % STAGES));
  const int row_tile = index % a.row_tiles, own = thread / KT_WARP * 16 + lane / 4;
  if constexpr (!DUAL) {
    const int first = row_tile * 128 + warpgroup * 64 + own;
    float bias[2];
#pragma unroll
    for (int r = 0; r < 2; r++) bias[r] = a.bias != NULL && first + 8 * r < a.rows ? __ldg(a.bias + (int64_t)tile.expert * a.rows + first + 8 * r) : 0.0f;
#pragma unroll
    for (int g = 0; g < N / 8; g++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int token = 8 * g + lane % 4 * 2 + e;
        if (token >= tile.count) continue;
        const int position = tile.first + token;
        float *to = a.out + (int64_t)(a.list != NULL ? __ldcg(a.list + position) : position) * a.out_stride + first;
#pragma unroll
        for (int r = 0; r < 2; r++)
          if (first + 8 * r < a.rows) {
            const float value = acc[4 * g + 2 * r + e] + bias[r];
            to[8 * r] = a.add ? __ldcg(to + 8 * r) + value : value;
          }
      }
  } else {
    /* gate is the first warpgroup's, up the second's: a panel at a time each gives the other half of its sums and ends the other half */
    const int first = row_tile * 64 + own;
    float bias[2][2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const bool there = first + 8 * r < a.rows;
      bias[0][r] = a.bias != NULL && there ? __ldg(a.bias + (int64_t)tile.expert * a.rows + first + 8 * r) : 0.0f;
      bias[1][r] = a.up_bias != NULL && there ? __ldg(a.up_bias + (int64_t)tile.expert * a.rows + first + 8 * r) : 0.0f;
    }
#pragma unroll
    for (int panel = 0; panel * 64 < N; panel++) {
      constexpr int ALL = N / 2;
      const int count = ALL - 32 * panel < 32 ? ALL - 32 * panel : 32, half = count / 2;
      if (panel * 64 >= tile.count) break;
      float *theirs = at.exchange + (1 - warpgroup) * 16 * 128 + thread, *mine = at.exchange + warpgroup * 16 * 128 + thread;
#pragma unroll
      for (int i = 0; i < 16; i++)
        if (i < half) theirs[i * 128] = warpgroup == 0 ? acc[32 * panel + half + i < ALL ? 32 * panel + half + i : 0] : acc[32 * panel + i < ALL ? 32 * panel + i : 0];
      if (a.out_panels != NULL && threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
      consumers_sync();
#pragma unroll
      for (int i = 0; i < 16; i++) {
        if (i >= half) continue;
        const int r = i / 2 % 2;
        const int at_first = 32 * panel + i < ALL ? 32 * panel + i : 0, at_second = 32 * panel + half + i < ALL ? 32 * panel + half + i : 0;
        const float gate = warpgroup == 0 ? acc[at_first] : mine[i * 128], up = warpgroup == 0 ? mine[i * 128] : acc[at_second];
        const float value = kt_activate<true>(a.act, gate + bias[0][r], up + bias[1][r]);
        const int token = (i + warpgroup * half) / 4 * 8 + lane % 4 * 2 + i % 2; /* of the panel */
        if (a.out_panels != NULL) {
          const int column = kt_panel_column(own + 8 * r);
          *(__nv_bfloat16 *)(at.panel + token * 128 + ((column >> 3) ^ (token & 7)) * 16 + (column & 7) * 2) = __float2bfloat16_rn(value);
        } else if (panel * 64 + token < tile.count && first + 8 * r < a.rows) {
          a.out[(int64_t)(tile.first + panel * 64 + token) * a.out_stride + first + 8 * r] = value;
        }
      }
      if (a.out_panels != NULL) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      consumers_sync();
      if (a.out_panels != NULL && threadIdx.x == 0) {
        uint8_t *to = a.out_panels + ((int64_t)(tile.first / 64 + panel) * (a.rows / 64) + row_tile) * KT_PANEL_BYTES;
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(kt_shared(at.panel)), "n"(KT_PANEL_BYTES) : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      }
    }
  }
}
#endif

template <uint32_t TYPE, bool DUAL, int N> __global__ void __launch_bounds__(THREADS, 1) tile_kernel(const __grid_constant__ tile_args a) {
#ifdef KT_HAS_WGMMA
  extern __shared__ __align__(1024) uint8_t memory[];
  places at;
  at.full = kt_shared(memory), at.empty = at.full + 8 * STAGES;
  at.stages = kt_shared(memory + 1024);
  at.ring_data = memory + 1024 + STAGES * STAGE_BYTES;
  at.ring = kt_shared(at.ring_data);
  at.exchange = (float *)(at.ring_data + RING_BYTES);
  at.panel = (uint8_t *)at.exchange + EXCHANGE_BYTES;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) kt_barrier_init(at.full + 8 * i, 1), kt_barrier_init(at.empty + 8 * i, 2);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  kt_wait_previous();
  const int all = a.num_tiles * a.row_tiles, first = tile_from(a, (int)blockIdx.x);
  if (threadIdx.x >= CONSUMERS) {
    /* registers are the consumers' */
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == CONSUMERS) {
      const uint64_t policy = kt_keep();
      int step = 0;
      for (int index = first; index < all; index = tile_from(a, index + (int)gridDim.x)) {
        const kt_gemm_tile tile = tile_at(a, index / a.row_tiles);
        const int panels = (tile.count + 63) / 64, steps = a.n / 64;
        const uint8_t *from = a.panels + (int64_t)(tile.first / 64) * steps * KT_PANEL_BYTES;
        for (int k = 0; k < steps; k++, step++) {
          const int stage = step % STAGES;
          if (step >= STAGES) kt_barrier_wait(at.empty + 8 * stage, (uint32_t)(step / STAGES - 1 & 1));
          kt_barrier_expect(at.full + 8 * stage, (uint32_t)(panels * KT_PANEL_BYTES));
          for (int p = 0; p < panels; p++)
            kt_bulk_copy(at.stages + (uint32_t)(stage * STAGE_BYTES + p * KT_PANEL_BYTES), from + ((int64_t)p * steps + k) * KT_PANEL_BYTES, KT_PANEL_BYTES, at.full + 8 * stage, policy);
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consumer c;
    c.step = c.slot = c.next_unit = 0;
    c.next_tile = first;
    if (first < all) point<DUAL>(a, c);
    for (int i = 0; i < DEPTH; i++) fetch<TYPE, DUAL>(a, c, at);
    for (int index = first; index < all; index = tile_from(a, index + (int)gridDim.x)) {
      const kt_gemm_tile tile = tile_at(a, index / a.row_tiles);
      compute<TYPE, DUAL, N>(a, c, at, index, tile);
    }
    if (a.out_panels != NULL && threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
#endif
}

bool kt_gpu_takes_tiles(const kt_ctx *ctx, const kt_weight &w, int64_t n) {
  const uint32_t type = w.type & ~KT_PACKED_BIT;
  return ctx->capability == 90 && (w.type & KT_PACKED_BIT) && (type == KT_Q4_K || type == KT_Q6_K || type == KT_Q8_0 || type == KT_Q4_0) && n % KT_UNIT == 0 &&
         (uintptr_t)w.data % 16 == 0;
}

/* Kernels by the most tokens of a tile. */
struct tile_kernels {
  void (*of[KT_TILE_WIDTHS])(const tile_args);
};
static const int widths[KT_TILE_WIDTHS] = {64, 128, 160, 256};

template <uint32_t TYPE, bool DUAL> static tile_kernels every_width() {
  return {{tile_kernel<TYPE, DUAL, 64>, tile_kernel<TYPE, DUAL, 128>, tile_kernel<TYPE, DUAL, 160>, tile_kernel<TYPE, DUAL, 256>}};
}
template <uint32_t TYPE, bool DUAL> static tile_kernels one_width() { return {{NULL, tile_kernel<TYPE, DUAL, 128>, NULL, NULL}}; }

/* Types of which models have whole prompts' worth of weights have every width. */
static tile_kernels kernels_of(uint32_t type, bool dual) {
  switch (type) {
    case KT_Q4_K: return dual ? every_width<KT_Q4_K, true>() : every_width<KT_Q4_K, false>();
    case KT_Q6_K: return dual ? one_width<KT_Q6_K, true>() : every_width<KT_Q6_K, false>();
    case KT_Q8_0: return dual ? one_width<KT_Q8_0, true>() : one_width<KT_Q8_0, false>();
    case KT_Q4_0: return dual ? one_width<KT_Q4_0, true>() : one_width<KT_Q4_0, false>();
    default: return {};
  }
}

int kt_tile_width(const kt_weight &w, bool dual, double tokens) {
  const tile_kernels kernels = kernels_of(w.type & ~KT_PACKED_BIT, dual);
  for (int i = 0; i < KT_TILE_WIDTHS; i++)
    if (kernels.of[i] != NULL && widths[i] >= tokens) return widths[i];
  return kernels.of[KT_TILE_WIDTHS - 1] != NULL ? widths[KT_TILE_WIDTHS - 1] : 128;
}

/* Tokens a tile of a dense product, so that the last turn of all multiprocessors is full. */
static int dense_width(const kt_ctx *ctx, const tile_kernels &kernels, int64_t row_tiles, int64_t tokens) {
  int best = 128;
  int64_t least = INT64_MAX;
  for (int i = 0; i < KT_TILE_WIDTHS; i++) {
    const int64_t width = widths[i], turns = kt_div_up(row_tiles * kt_div_up(tokens, width), ctx->multiprocessors);
    if (kernels.of[i] == NULL || width % 64 != 0) continue;
    /* narrow tiles make weights bf16 more often */
    const int64_t cost = turns * (width + 24);
    if (cost < least) least = cost, best = (int)width;
  }
  return best;
}

kt_status_t kt_gpu_tiles(kt_ctx *ctx, const kt_tiles &t) {
  const kt_product &p = t.product;
  tile_args a = {};
  a.w = p.w.data, a.up = p.up.data;
  a.matrix_stride = t.matrix_stride;
  a.row_bytes = (int)p.w.row_stride;
  a.rows = (int)p.rows, a.n = (int)p.n;
  a.row_tiles = (int)kt_div_up(p.rows, p.up.data != NULL ? 64 : 128);
  a.panels = (const uint8_t *)t.panels;
  a.tiles = t.tiles;
  a.tokens = (int)t.tokens;
  const tile_kernels kernels = kernels_of(p.w.type & ~KT_PACKED_BIT, p.up.data != NULL);
  a.tile_tokens = t.tiles != NULL ? t.width : dense_width(ctx, kernels, a.row_tiles, t.tokens);
  a.num_tiles = (int)(t.tiles != NULL ? t.num_tiles : kt_div_up(t.tokens, a.tile_tokens));
  a.list = t.list;
  a.bias = p.bias, a.up_bias = p.up_bias;
  a.add = p.add, a.act = p.act;
  a.out = p.out, a.out_stride = p.out_stride;
  a.out_panels = (uint8_t *)t.out_panels;
  const int64_t all = (int64_t)a.num_tiles * a.row_tiles, blocks = all < ctx->multiprocessors ? all : ctx->multiprocessors;
  for (int i = 0; i < KT_TILE_WIDTHS; i++)
    if (widths[i] == a.tile_tokens && kernels.of[i] != NULL) {
      KT_CUDA(cudaFuncSetAttribute(kernels.of[i], cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES));
      return kt_launch_early(ctx, kernels.of[i], dim3((unsigned)blocks), dim3(THREADS), SHARED_BYTES, a);
    }
  return kt_gpu_fail(KT_ERR_UNSUPPORTED, "no tiles of %d tokens for type %u", a.tile_tokens, p.w.type);
}
#else
kt_status_t kt_gpu_tiles(kt_ctx *, const kt_tiles &) { return kt_gpu_fail(KT_ERR_INTERNAL, "tensor cores are not here"); }
kt_status_t kt_gpu_to_panels(kt_ctx *, kt_frows, const int32_t *, int, int64_t, void *) { return kt_gpu_fail(KT_ERR_INTERNAL, "tensor cores are not here"); }
bool kt_gpu_takes_tiles(const kt_ctx *, const kt_weight &, int64_t) { return false; }
int kt_tile_width(const kt_weight &, bool, double) { return 64; }
int64_t kt_panel_bytes(int64_t positions, int64_t n) { return positions * n * 2; }
#endif
