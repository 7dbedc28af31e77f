/* Products of experts that several tokens choose: every expert's weights are read once for all of its tokens, by int8.
 * SHAPES       rows of codes as codes.cuh has them, one a position; tiles of up to KT_GROUPED_TOKENS positions of one expert, those with a
 *              count first; packed stacks [experts, rows, n]
 * DEFINITION   act(gate . x, up . x) as codes again, or w . x into the row of out that `list` names
 * REGULARITIES a few tokens a tile. A unit is a tile and some rows, a warp takes one of these at a time. Weights come into each
 *              warp's ring and activations of the next unit into shared memory by bulk copies */
#include "activation.cuh"
#include "async.cuh"
#include "codes.cuh"

#if KT_HAS_MMA
#define WARPS 16
#define THREADS (WARPS * KT_WARP)
#define MAX_SLOTS 8
#define BARRIER_BYTES (WARPS * MAX_SLOTS * 8 + 128)
#define TOKENS KT_GROUPED_TOKENS
#define MOST_BYTES (200 * 1024)

struct grouped_args {
  const uint8_t *w, *up;
  int64_t matrix_stride;
  int row_bytes, segment_bytes, rows, n, unit_rows, num_tiles, slots, slot_bytes, record;
  const kt_gemm_tile *tiles;
  const int32_t *list;
  const uint8_t *x; /* records */
  int divisor;      /* of a pair: its record; 0: records lie by position */
  const float *bias, *up_bias;
  uint32_t act;
  uint8_t *codes; /* of gate and up: records by position */
  int codes_record;
  float *out;
  int64_t out_stride;
};

template <uint32_t TYPE, bool DUAL> __global__ void __launch_bounds__(THREADS, 1) grouped_kernel(const __grid_constant__ grouped_args a) {
#if __CUDA_ARCH__ >= 900
  constexpr int STREAMS = DUAL ? 2 : 1, VALUES = TYPE == KT_Q8_0 ? 16 : 32;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ kt_gemm_tile own_tiles[2];
  const int warp = threadIdx.x / KT_WARP, lane = threadIdx.x % KT_WARP, chunks = (a.n + KT_SEGMENT - 1) / KT_SEGMENT, code_bytes = kt_code_bytes(a.n);
  const int units_each = (a.rows + a.unit_rows - 1) / a.unit_rows, all = a.num_tiles * units_each;
  const uint32_t barriers = kt_shared(memory) + (uint32_t)(warp * MAX_SLOTS * 8), there = kt_shared(memory) + WARPS * MAX_SLOTS * 8;
  uint8_t *ring = memory + BARRIER_BYTES + warp * a.slots * a.slot_bytes, *staged = memory + BARRIER_BYTES + WARPS * a.slots * a.slot_bytes;
  float *results = (float *)(staged + 2 * TOKENS * a.record); /* [TOKENS][unit_rows] of DUAL */
  const uint64_t policy = kt_evict_first(), keep = kt_keep();
  if (lane == 0)
    for (int i = 0; i < a.slots; i++) kt_barrier_init(barriers + 8 * i, 1);
  if (threadIdx.x == 0) kt_barrier_init(there, 1), kt_barrier_init(there + 8, 1);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  kt_start_next();
  kt_wait_previous();
  /* what is copied next: of unit `ahead`, the warp's rows and their chunks in order */
  int ahead = (int)blockIdx.x, ahead_row = warp, ahead_chunk = 0, slot = 0, used = 0;
  uint32_t parity = 0;
  bool more = true;
  const uint8_t *from[2] = {NULL, NULL};
  int last = 0; /* rows of the unit */
  const auto point = [&]() {
    if (ahead >= all) {
      more = false;
      return;
    }
    const int4 tile = __ldcg((const int4 *)(a.tiles + ahead / units_each));
    if (tile.z == 0) {
      more = false;
      return;
    }
    const int first = ahead % units_each * a.unit_rows;
    last = min(a.unit_rows, a.rows - first);
    const int64_t at = tile.x * a.matrix_stride + (int64_t)first * a.row_bytes;
    from[0] = a.w + at;
    if (DUAL) from[1] = a.up + at;
  };
  const auto issue = [&]() {
    while (more && ahead_row >= last) {
      ahead += (int)gridDim.x, ahead_row = warp;
      point();
    }
    if (!more) return;
    if (lane == 0) {
      const int bytes = ahead_chunk + 1 < chunks ? a.segment_bytes : a.row_bytes - ahead_chunk * a.segment_bytes;
      const int64_t at = (int64_t)ahead_row * a.row_bytes + ahead_chunk * a.segment_bytes;
      kt_barrier_expect(barriers + 8 * slot, (uint32_t)(STREAMS * bytes));
#pragma unroll
      for (int r = 0; r < STREAMS; r++) kt_bulk_copy(kt_shared(ring) + (uint32_t)(slot * a.slot_bytes + r * (a.slot_bytes / STREAMS)), from[r] + at, (uint32_t)bytes, barriers + 8 * slot, policy);
    }
    if (++slot == a.slots) slot = 0;
    if (++ahead_chunk == chunks) ahead_chunk = 0, ahead_row += WARPS;
  };
  /* activations of a unit's tile, into one of two places; by one warp */
  const auto stage = [&](int unit, int place) {
    kt_gemm_tile tile = {0, 0, 0, 0};
    if (unit < all) {
      const int4 t = __ldcg((const int4 *)(a.tiles + unit / units_each));
      tile = {t.x, t.y, t.z, 0};
    }
    if (lane == 0) own_tiles[place] = tile;
    if (tile.count == 0) return;
    if (lane == 0) kt_barrier_expect(there + 8 * place, (uint32_t)(tile.count * a.record));
    __syncwarp();
    if (lane < tile.count) {
      const int row = a.divisor == 0 ? tile.first + lane : __ldcg(a.list + tile.first + lane) / a.divisor;
      kt_bulk_copy(kt_shared(staged) + (uint32_t)((place * TOKENS + lane) * a.record), a.x + (int64_t)row * a.record, (uint32_t)a.record, there + 8 * place, keep);
    }
  };
  point();
  for (int i = 0; i < a.slots; i++) issue();
  if (warp == 0) {
    stage((int)blockIdx.x, 0);
    stage((int)(blockIdx.x + gridDim.x), 1);
  }
  __syncthreads();
  for (int unit = (int)blockIdx.x, turn = 0; unit < all; unit += (int)gridDim.x, turn++) {
    const int place = turn & 1, first = unit % units_each * a.unit_rows, rows = min(a.unit_rows, a.rows - first);
    const kt_gemm_tile tile = own_tiles[place];
    if (tile.count == 0) break;
    kt_barrier_wait(there + 8 * place, turn >> 1 & 1);
    const uint8_t *x = staged + place * TOKENS * a.record;
    for (int row = warp; row < rows; row += WARPS) {
      float acc[STREAMS * TOKENS];
#pragma unroll
      for (int i = 0; i < STREAMS * TOKENS; i++) acc[i] = 0;
      for (int chunk = 0; chunk < chunks; chunk++) {
        kt_barrier_wait(barriers + 8 * used, parity);
        const uint8_t *w = ring + used * a.slot_bytes;
        if (++used == a.slots) used = 0, parity ^= 1;
        const int columns = min(KT_SEGMENT, a.n - chunk * KT_SEGMENT);
        for (int c = lane; c < columns / VALUES; c += KT_WARP) {
          kt_piece<TYPE> piece[STREAMS];
#pragma unroll
          for (int r = 0; r < STREAMS; r++) piece[r].load(w + r * (a.slot_bytes / STREAMS), columns, c);
          const int x0 = chunk * KT_SEGMENT + first_place<TYPE>(c), x1 = chunk * KT_SEGMENT + second_place<TYPE>(c), scale = code_bytes + chunk * (KT_SEGMENT / 2) + scale_place<TYPE>(c);
#pragma unroll
          for (int t = 0; t < TOKENS; t++) {
            if (t >= tile.count) break;
            inputs<TYPE> in;
            in.load(x + t * a.record, x + t * a.record, x0, x1, scale);
#pragma unroll
            for (int r = 0; r < STREAMS; r++) acc[r * TOKENS + t] += piece[r].dot(in);
          }
        }
        __syncwarp();
        issue();
      }
      float own[STREAMS] = {};
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        if (t >= tile.count) break;
#pragma unroll
        for (int r = 0; r < STREAMS; r++) {
          const float sum = kt_warp_sum(acc[r * TOKENS + t]);
          if (lane == t) own[r] = sum;
        }
      }
      if (lane < tile.count) {
        const int64_t at = (int64_t)tile.expert * a.rows + first + row;
        const float value = own[0] + (a.bias != NULL ? __ldg(a.bias + at) : 0.0f);
        if (DUAL) results[lane * a.unit_rows + row] = kt_activate(a.act, value, own[STREAMS - 1] + (a.up_bias != NULL ? __ldg(a.up_bias + at) : 0.0f));
        else a.out[(int64_t)__ldcg(a.list + tile.first + lane) * a.out_stride + first + row] = value;
      }
    }
    __syncthreads();
    if (warp == 0) stage(unit + 2 * (int)gridDim.x, place);
    if (DUAL) {
      /* rows of a unit are whole blocks of 32 */
      const int quads = rows / 4, padded = (quads + KT_WARP - 1) / KT_WARP * KT_WARP;
      for (int i = threadIdx.x; i < tile.count * padded; i += THREADS) {
        const int t = i / padded, quad = i - t * padded;
        const bool has = quad < quads;
        uint8_t *record = a.codes + (int64_t)(tile.first + t) * a.codes_record;
        kt_store_codes(has ? *(const float4 *)(results + t * a.unit_rows + 4 * quad) : make_float4(0, 0, 0, 0), first / 4 + quad, has, record, (float4 *)(record + kt_code_bytes(a.rows)));
      }
      __syncthreads();
    }
  }
#endif
}

/* Records of rows of x, one block a row. */
__global__ void __launch_bounds__(256) code_rows_kernel(kt_frows x, uint8_t *records) {
#if __CUDA_ARCH__ >= 900
  const int quads = (int)x.n / 4, padded = (quads + KT_WARP - 1) / KT_WARP * KT_WARP, code_bytes = kt_code_bytes((int)x.n);
  uint8_t *record = records + blockIdx.x * (int64_t)kt_code_row_bytes((int)x.n);
  kt_start_next();
  kt_wait_previous();
  for (int i = threadIdx.x; i < padded; i += blockDim.x) {
    const bool has = i < quads;
    kt_store_codes(has ? __ldcg((const float4 *)(x.data + blockIdx.x * x.stride) + i) : make_float4(0, 0, 0, 0), i, has, record, (float4 *)(record + code_bytes));
  }
#endif
}

static bool aligned16(const void *p) { return (uintptr_t)p % 16 == 0; }

/* Rows of a unit, and slots of a warp's ring; 0 where there is no room. */
static int slots_for(grouped_args &a, bool dual) {
  const int streams = dual ? 2 : 1;
  a.unit_rows = dual ? 64 : 256;
  a.record = kt_code_row_bytes(a.n);
  a.slot_bytes = streams * (a.n > KT_SEGMENT ? a.segment_bytes : a.row_bytes);
  const int64_t held = BARRIER_BYTES + 2 * TOKENS * (int64_t)a.record + (dual ? TOKENS * a.unit_rows * 4 : 0), slots = (MOST_BYTES - held) / (WARPS * a.slot_bytes);
  a.slots = (int)(slots > MAX_SLOTS ? MAX_SLOTS : slots);
  return a.slots >= 2 ? a.slots : 0;
}

static grouped_args args_of(const kt_tensor_t *w) {
  grouped_args a = {};
  const kt_weight of = kt_weight_of(w);
  const uint32_t type = of.type & ~KT_PACKED_BIT;
  a.w = of.data, a.row_bytes = (int)of.row_stride, a.segment_bytes = (int)kt_packed_row_bytes(type, KT_SEGMENT);
  a.rows = (int)w->shape[1], a.n = (int)w->shape[2];
  a.matrix_stride = kt_matrix_stride(w);
  return a;
}

bool kt_gpu_takes_grouped(const kt_ctx *ctx, const kt_tensor_t *w, bool dual) {
  grouped_args a = args_of(w);
  return kt_has_bulk(ctx) && ctx->shared_bytes > MOST_BYTES && kt_has_int8(kt_weight_of(w).type) && a.n % 32 == 0 && a.rows % 32 == 0 && a.matrix_stride % 16 == 0 && aligned16(a.w) && slots_for(a, dual) != 0;
}

int64_t kt_grouped_bytes(int64_t rows, int64_t n) { return rows * kt_code_row_bytes((int)n); }

kt_status_t kt_gpu_code_rows(kt_ctx *ctx, kt_frows x, void *records) {
  return kt_launch_early(ctx, code_rows_kernel, dim3((unsigned)x.count), dim3(256), 0, x, (uint8_t *)records);
}

template <uint32_t TYPE> static kt_status_t launch(kt_ctx *ctx, const grouped_args &a, bool dual) {
  void (*kernel)(const grouped_args) = dual ? grouped_kernel<TYPE, true> : grouped_kernel<TYPE, false>;
  const int bytes = BARRIER_BYTES + WARPS * a.slots * a.slot_bytes + 2 * TOKENS * a.record + (dual ? TOKENS * a.unit_rows * 4 : 0);
  KT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, MOST_BYTES));
  return kt_launch_early(ctx, kernel, dim3((unsigned)ctx->multiprocessors), dim3(THREADS), (size_t)bytes, a);
}

kt_status_t kt_gpu_grouped(kt_ctx *ctx, const kt_grouped &g) {
  grouped_args a = args_of(g.w);
  const bool dual = g.up != NULL;
  if (dual) a.up = (const uint8_t *)g.up->data;
  slots_for(a, dual);
  a.num_tiles = (int)g.num_tiles;
  a.tiles = g.tiles, a.list = g.list;
  a.x = (const uint8_t *)g.records, a.divisor = (int)g.divisor;
  a.bias = g.bias, a.up_bias = g.up_bias, a.act = g.act;
  a.codes = (uint8_t *)g.out_records, a.codes_record = kt_code_row_bytes(a.rows);
  a.out = g.out, a.out_stride = a.rows;
  switch (kt_weight_of(g.w).type & ~KT_PACKED_BIT) {
    case KT_Q4_K: return launch<KT_Q4_K>(ctx, a, dual);
    case KT_Q6_K: return launch<KT_Q6_K>(ctx, a, dual);
    case KT_Q4_0: return launch<KT_Q4_0>(ctx, a, dual);
    case KT_Q4_1: return launch<KT_Q4_1>(ctx, a, dual);
    default: return launch<KT_Q8_0>(ctx, a, dual);
  }
}
#else
bool kt_gpu_takes_grouped(const kt_ctx *, const kt_tensor_t *, bool) { return false; }
int64_t kt_grouped_bytes(int64_t, int64_t) { return 0; }
kt_status_t kt_gpu_code_rows(kt_ctx *, kt_frows, void *) { return kt_gpu_fail(KT_ERR_INTERNAL, "bulk copies are not here"); }
kt_status_t kt_gpu_grouped(kt_ctx *, const kt_grouped &) { return kt_gpu_fail(KT_ERR_INTERNAL, "bulk copies are not here"); }
#endif
