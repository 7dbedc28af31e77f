/* Products of 2 .. 16 rows of activations with dense matrices: blocks that stay, weights by bulk copies, tensor cores of halves.
 * SHAPES       x [tokens, n] f32; packed weights [rows, n]; out [tokens, rows] f32
 * DEFINITION   out[t][r] = x[t] . w[r] (+ bias[r]) (+ out[t][r]), or act(gate . x, up . x) of two weights
 * REGULARITIES n is a multiple of 256. A chunk is 16 rows of a segment; chunks are shared out segment by segment, so that a warp, which has
 *              256 columns of each segment, keeps its activations in registers from tile to tile: halves times a power of two of
 *              the token's own there. One warp copies chunks into a ring, one adds the eight warps' sums of a chunk; the last block of a
 *              tile adds its segments in their order. Values of Q4_K are (16 + q) s, whose surplus 16 s and minima a product with sums
 *              of activations takes off */
#include "activation.cuh"
#include "mma.cuh"
#include "products.cuh"
#include "ring.cuh"

#if KT_HAS_MMA
#define CONSUMERS (KT_RING_WARPS * KT_WARP)
#define THREADS (CONSUMERS + 2 * KT_WARP)
#define HELD 4 /* chunks whose sums wait for the warp that adds them */
#define MAX_CHUNKS 1024 /* a block */

struct rows_args {
  kt_ring_parts weights;
  int chunks, tokens;
  const float *x;
  int64_t x_stride;
  int n;
  bool add;
  uint32_t act;
  int64_t out_strides[KT_STREAM_PARTS];
  float4 *partial;   /* [chunks][N / 8][lanes] */
  uint32_t *arrived; /* [units], zeros between launches */
};

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ float half_of(uint32_t bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }
__device__ __forceinline__ uint32_t bits_of(__half2 v) { return *(const uint32_t *)&v; }
__device__ __forceinline__ __half2 pair_of(uint32_t bits) { return *(const __half2 *)&bits; }

__device__ __forceinline__ void multiply(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t tf32_of(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}
__device__ __forceinline__ void multiply_sums(float *c, const float *a, float2 b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(tf32_of(a[0])), "r"(tf32_of(a[1])), "r"(tf32_of(a[2])), "r"(tf32_of(a[3])), "r"(tf32_of(b.x)), "r"(tf32_of(b.y)));
}

/* Bytes 0 and 2, or 1 and 3, of a word as halves, `magic` being minus what is added to bytes by 1024's exponent, times the scale. */
__device__ __forceinline__ void bytes_to_halves(uint32_t word, uint32_t magic, __half2 scale, uint32_t *even, uint32_t *odd) {
  *even = bits_of(__hmul2(__hadd2(pair_of(__byte_perm(word, 0x64646464u, 0x4240)), pair_of(magic)), scale));
  *odd = bits_of(__hmul2(__hadd2(pair_of(__byte_perm(word, 0x64646464u, 0x4341)), pair_of(magic)), scale));
}

/* What a warp keeps of its 256 columns of TILES times 8 tokens: lane 4 g + t has blocks t and t + 4 of 32 columns of token g. */
template <int TILES> struct operand {
  uint4 x[TILES][2][4];
  float2 sums[TILES];    /* of these blocks */
  float2 factors[TILES]; /* of the products of tokens 2 t and 2 t + 1 */
  /* span: the first of the 256 columns */
  __device__ __forceinline__ void load(const rows_args &a, int first) {
    const int lane = threadIdx.x % KT_WARP, t = lane % 4;
#pragma unroll
    for (int j = 0; j < TILES; j++) {
      const float *from = a.x + min(8 * j + lane / 4, a.tokens - 1) * a.x_stride + first + 32 * t;
      float4 v[2][8];
      float most = 0;
#pragma unroll
      for (int i = 0; i < 16; i++) v[i / 8][i % 8] = __ldcg((const float4 *)(from + i / 8 * 128) + i % 8);
#pragma unroll
      for (int i = 0; i < 16; i++) {
        const float4 u = v[i / 8][i % 8];
        most = fmaxf(most, fmaxf(fmaxf(fabsf(u.x), fabsf(u.y)), fmaxf(fabsf(u.z), fabsf(u.w))));
      }
      most = fmaxf(most, __shfl_xor_sync(KT_FULL_MASK, most, 1));
      most = fmaxf(most, __shfl_xor_sync(KT_FULL_MASK, most, 2));
      /* the greatest is 8192 .. 16384 then */
      const int exponent = min(max((int)(__float_as_uint(most) >> 23), 20), 230);
      const float scale = __uint_as_float((uint32_t)(254 + 13 - exponent) << 23), factor = __uint_as_float((uint32_t)(exponent - 13) << 23);
      factors[j] = make_float2(__shfl_sync(KT_FULL_MASK, factor, 8 * t), __shfl_sync(KT_FULL_MASK, factor, 8 * t + 4));
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float sum = 0;
#pragma unroll
        for (int q = 0; q < 4; q++) {
          /* columns 0 2, 4 6, 1 3, 5 7 */
          const float4 u = v[i][2 * q], w = v[i][2 * q + 1];
          const __half2 h[4] = {__floats2half2_rn(u.x * scale, u.z * scale), __floats2half2_rn(w.x * scale, w.z * scale), __floats2half2_rn(u.y * scale, u.w * scale),
                                __floats2half2_rn(w.y * scale, w.w * scale)};
          x[j][i][q] = make_uint4(bits_of(h[0]), bits_of(h[1]), bits_of(h[2]), bits_of(h[3]));
#pragma unroll
          for (int k = 0; k < 4; k++) sum += __low2float(h[k]) + __high2float(h[k]);
        }
        if (i == 0) sums[j].x = sum;
        else sums[j].y = sum;
      }
    }
  }
};

template <uint32_t TYPE, int TILES> __device__ __forceinline__ void add_span(const uint8_t *slot, int columns, int span, const operand<TILES> &b, float (&acc)[TILES][4]) {
  constexpr int PITCH = kt_ring_pitch(TYPE);
  constexpr uint32_t LOW = 0x0f0f0f0f, TOP = 0x30303030, FOUR = 0x03c003c0, ONE = 0x3c003c00;
  const int lane = threadIdx.x % KT_WARP, t = lane % 4, super_blocks = columns / 256;
  const uint8_t *w = slot + lane / 4 * PITCH;
  float surplus[4]; /* of Q4_K: [i][row] */
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int block = 8 * span + 4 * i + t;
    /* the left operands of both products of a word of activations, rows by turns */
    const auto both = [&](const uint32_t *first, const uint32_t *second, int q) {
#pragma unroll
      for (int j = 0; j < TILES; j++) multiply(acc[j], first, b.x[j][i][q].x, b.x[j][i][q].y), multiply(acc[j], second, b.x[j][i][q].z, b.x[j][i][q].w);
    };
    if constexpr (TYPE == KT_Q4_K) {
      uint32_t words[2][4];
      __half2 scale[2];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const uint8_t *row = w + 8 * r * PITCH;
        *(uint4 *)words[r] = *(const uint4 *)(row + block * 16);
        const uint32_t sub = *(const uint16_t *)(row + super_blocks * 128 + block * 2), d = *(const uint32_t *)(row + super_blocks * 144 + span * 4);
        const __half s = __float2half_rn(16.0f * half_of(d & 0xffff) * (float)(sub & 255));
        scale[r] = __half2half2(s);
        surplus[2 * i + r] = -(__half2float(s) + half_of(d >> 16) * (float)(sub >> 8));
      }
#pragma unroll
      for (int q = 0; q < 4; q++) {
        uint32_t first[4], second[4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const uint32_t v = words[r][q];
          first[r] = bits_of(__hmul2(pair_of((v << 6 & FOUR) | ONE), scale[r]));
          first[2 + r] = bits_of(__hmul2(pair_of((v << 2 & FOUR) | ONE), scale[r]));
          second[r] = bits_of(__hmul2(pair_of((v >> 2 & FOUR) | ONE), scale[r]));
          second[2 + r] = bits_of(__hmul2(pair_of((v >> 6 & FOUR) | ONE), scale[r]));
        }
        both(first, second, q);
      }
    } else if constexpr (TYPE == KT_Q6_K) {
      uint4 low[2];
      uint2 high[2];
      uint32_t sub[2];
      float d[2];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const uint8_t *row = w + 8 * r * PITCH;
        low[r] = *(const uint4 *)(row + block * 16);
        high[r] = *(const uint2 *)(row + super_blocks * 128 + block * 8);
        sub[r] = *(const uint16_t *)(row + super_blocks * 192 + block * 2);
        d[r] = half_of(*(const uint16_t *)(row + super_blocks * 208 + span * 2));
      }
#pragma unroll
      for (int q = 0; q < 4; q++) {
        uint32_t first[4], second[4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const uint32_t v = q == 0 ? low[r].x : q == 1 ? low[r].y : q == 2 ? low[r].z : low[r].w, bits = (q < 2 ? high[r].x : high[r].y) >> (q % 2 * 4);
          const __half2 scale = __float2half2_rn(d[r] * (float)(int8_t)(sub[r] >> (q / 2 * 8)));
          bytes_to_halves((v & LOW) | (bits << 4 & TOP), 0xe420e420u, scale, &first[r], &second[r]);
          bytes_to_halves((v >> 4 & LOW) | (bits << 2 & TOP), 0xe420e420u, scale, &first[2 + r], &second[2 + r]);
        }
        both(first, second, q);
      }
    } else {
      uint32_t words[2][8];
      __half2 scale[2];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const uint8_t *row = w + 8 * r * PITCH;
        *(uint4 *)words[r] = *(const uint4 *)(row + block * 32);
        *(uint4 *)(words[r] + 4) = *(const uint4 *)(row + block * 32 + 16);
        scale[r] = __half2half2(*(const __half *)(row + columns + block * 2));
      }
#pragma unroll
      for (int q = 0; q < 4; q++) {
        uint32_t first[4], second[4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
          bytes_to_halves(words[r][2 * q] ^ 0x80808080u, 0xe480e480u, scale[r], &first[r], &second[r]);
          bytes_to_halves(words[r][2 * q + 1] ^ 0x80808080u, 0xe480e480u, scale[r], &first[2 + r], &second[2 + r]);
        }
        both(first, second, q);
      }
    }
  }
  if constexpr (TYPE == KT_Q4_K)
#pragma unroll
    for (int j = 0; j < TILES; j++) multiply_sums(acc[j], surplus, b.sums[j]);
}
#endif

/* Chunk c: segment c / tiles, tile c % tiles. */
template <uint32_t TYPE, int TILES, bool DUAL> __global__ void __launch_bounds__(THREADS, TILES == 1 ? 2 : 1) rows_kernel(const __grid_constant__ rows_args a) {
#if __CUDA_ARCH__ >= 900
  constexpr int STREAMS = DUAL ? 2 : 1, PITCH = kt_ring_pitch(TYPE);
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ int ended[MAX_CHUNKS], num_ended;
  __shared__ __align__(8) uint64_t held_barriers[2 * HELD];
  float4 *held = (float4 *)(memory + KT_RING_BARRIERS); /* [HELD][warps][TILES][lanes] */
  uint8_t *slots = memory + KT_RING_BARRIERS + HELD * KT_RING_WARPS * TILES * KT_WARP * 16;
  const uint32_t full = kt_shared(memory), empty = full + KT_RING_SLOTS * 8, held_full = kt_shared(held_barriers), held_empty = held_full + HELD * 8;
  const int thread = threadIdx.x, warp = thread / KT_WARP, lane = thread % KT_WARP, units = a.weights.units, tiles = STREAMS * units;
  const int begin = (int)((int64_t)a.chunks * blockIdx.x / gridDim.x), end = (int)((int64_t)a.chunks * (blockIdx.x + 1) / gridDim.x);
  if (thread == 0) {
    num_ended = 0;
    for (int i = 0; i < a.weights.slots; i++) kt_barrier_init(full + 8 * i, 1), kt_barrier_init(empty + 8 * i, KT_RING_WARPS);
    for (int i = 0; i < HELD; i++) kt_barrier_init(held_full + 8 * i, KT_RING_WARPS), kt_barrier_init(held_empty + 8 * i, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (warp == KT_RING_WARPS) {
    kt_ring_writer writer(full, empty, kt_shared(slots));
    for (int chunk = begin; chunk < end; chunk++) {
      writer.copy(a.weights, chunk % tiles / STREAMS, chunk % tiles % STREAMS, chunk / tiles, a.n, PITCH);
    }
  } else if (warp < KT_RING_WARPS) {
    kt_wait_previous();
    kt_start_next();
    operand<TILES> b;
    int slot = 0, at = 0, known = -1;
    uint32_t parity = 0;
    for (int chunk = begin; chunk < end; chunk++) {
      const int segment = chunk / tiles, columns = min(KT_SEGMENT, a.n - segment * KT_SEGMENT);
      const bool own = warp * KT_RING_SPAN < columns;
      if (segment != known) {
        known = segment;
        if (own) b.load(a, segment * KT_SEGMENT + warp * KT_RING_SPAN);
      }
      float acc[TILES][4];
#pragma unroll
      for (int j = 0; j < TILES; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0;
      kt_barrier_wait(full + 8 * slot, parity);
      if (own) add_span<TYPE, TILES>(slots + slot * a.weights.slot_bytes, columns, warp, b, acc);
      __syncwarp();
      if (lane == 0) kt_barrier_arrive(empty + 8 * slot);
      if (++slot == a.weights.slots) slot = 0, parity ^= 1;
      if (at >= HELD) kt_barrier_wait(held_empty + 8 * (at % HELD), (uint32_t)(at / HELD - 1) & 1);
#pragma unroll
      for (int j = 0; j < TILES; j++) held[((at % HELD * KT_RING_WARPS + warp) * TILES + j) * KT_WARP + lane] = own ? make_float4(acc[j][0] * b.factors[j].x, acc[j][1] * b.factors[j].y, acc[j][2] * b.factors[j].x, acc[j][3] * b.factors[j].y) : make_float4(0, 0, 0, 0);
      __syncwarp();
      if (lane == 0) kt_barrier_arrive(held_full + 8 * (at % HELD));
      at++;
    }
  } else {
    kt_wait_previous();
    for (int chunk = begin, at = 0; chunk < end; chunk++, at++) {
      kt_barrier_wait(held_full + 8 * (at % HELD), (uint32_t)(at / HELD) & 1);
#pragma unroll
      for (int j = 0; j < TILES; j++) {
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < KT_RING_WARPS; i++) {
          const float4 v = held[((at % HELD * KT_RING_WARPS + i) * TILES + j) * KT_WARP + lane];
          sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        __stcg(a.partial + ((int64_t)chunk * TILES + j) * KT_WARP + lane, sum);
      }
      __syncwarp();
      if (lane == 0) kt_barrier_arrive(held_empty + 8 * (at % HELD));
    }
    __threadfence();
  }
  __syncthreads();
  /* tiles that no block has yet to add to are ended here */
  const int segments = (a.n + KT_SEGMENT - 1) / KT_SEGMENT;
  for (int chunk = begin + thread; chunk < end; chunk += THREADS) {
    const int unit = chunk % tiles / STREAMS;
    if (atomicAdd(a.arrived + unit, 1u) + 1 != (uint32_t)(segments * STREAMS)) continue;
    a.arrived[unit] = 0;
    ended[atomicAdd(&num_ended, 1)] = unit;
  }
  __threadfence();
  __syncthreads();
  for (int i = warp; i < num_ended; i += THREADS / KT_WARP) {
    const int unit = ended[i];
    int row0;
    const int part = kt_ring_part(a.weights, unit, &row0);
    const kt_stream_part &p = a.weights.parts[part];
#pragma unroll
    for (int j = 0; j < TILES; j++) {
      float sum[STREAMS][4];
#pragma unroll
      for (int s = 0; s < STREAMS; s++) sum[s][0] = sum[s][1] = sum[s][2] = sum[s][3] = 0;
      for (int segment = 0; segment < segments; segment++)
#pragma unroll
        for (int s = 0; s < STREAMS; s++) {
          const float4 v = __ldcg(a.partial + (((int64_t)segment * tiles + STREAMS * unit + s) * TILES + j) * KT_WARP + lane);
          sum[s][0] += v.x, sum[s][1] += v.y, sum[s][2] += v.z, sum[s][3] += v.w;
        }
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int row = row0 + lane / 4 + e / 2 * 8, token = 8 * j + lane % 4 * 2 + e % 2;
        if (row >= p.rows || token >= a.tokens) continue;
        float value = sum[0][e] + (p.bias != NULL ? __ldg(p.bias + row) : 0.0f);
        if (DUAL) value = kt_activate<true>(a.act, value, sum[STREAMS - 1][e]);
        float *to = p.out + token * a.out_strides[part] + row;
        *to = a.add ? __ldcg(to) + value : value;
      }
    }
  }
#endif
}

bool kt_gpu_takes_rows(const kt_ctx *ctx, const kt_weight &w, int64_t n, int64_t tokens) {
  const uint32_t type = w.type & ~KT_PACKED_BIT;
  return kt_has_bulk(ctx) && (w.type & KT_PACKED_BIT) && (type == KT_Q4_K || type == KT_Q6_K || type == KT_Q8_0) && n % KT_RING_SPAN == 0 && n <= 65536 &&
         (uintptr_t)w.data % 16 == 0 && tokens > 1 && tokens <= KT_ROWS_TOKENS;
}

template <uint32_t TYPE, int TILES, bool DUAL> static kt_status_t launch(kt_ctx *ctx, rows_args &a) {
  constexpr int HELD_BYTES = KT_RING_BARRIERS + HELD * KT_RING_WARPS * TILES * KT_WARP * 16, SLOT_BYTES = KT_RING_ROWS * kt_ring_pitch(TYPE);
  constexpr int FIT = (KT_RING_BYTES - (int)sizeof(int) * MAX_CHUNKS - HELD_BYTES) / SLOT_BYTES, SLOTS = FIT < KT_RING_SLOTS ? FIT : KT_RING_SLOTS, SHARED = HELD_BYTES + SLOTS * SLOT_BYTES;
  a.weights.slots = SLOTS, a.weights.slot_bytes = SLOT_BYTES;
  const auto kernel = rows_kernel<TYPE, TILES, DUAL>;
  KT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED));
  const int blocks = a.chunks < ctx->multiprocessors ? a.chunks : ctx->multiprocessors;
  return kt_launch_early(ctx, kernel, dim3((unsigned)blocks), dim3(THREADS), SHARED, a);
}

template <uint32_t TYPE> static kt_status_t of_kind(kt_ctx *ctx, rows_args &a, bool dual) {
  if (a.tokens <= 8) return dual ? launch<TYPE, 1, true>(ctx, a) : launch<TYPE, 1, false>(ctx, a);
  return dual ? launch<TYPE, 2, true>(ctx, a) : launch<TYPE, 2, false>(ctx, a);
}

kt_status_t kt_gpu_rows(kt_ctx *ctx, kt_frows x, const kt_product *products, int count) {
  rows_args a = {};
  const bool dual = products[0].up.data != NULL;
  const uint32_t type = products[0].w.type & ~KT_PACKED_BIT;
  a.weights.num_parts = count;
  for (int i = 0; i < count; i++) {
    a.weights.parts[i] = kt_ring_part_of(products[i]);
    a.weights.units += (int)kt_div_up(products[i].rows, KT_RING_ROWS);
    a.out_strides[i] = products[i].out_stride;
  }
  const int tiles = x.count > 8 ? 2 : 1;
  a.chunks = (int)kt_div_up(x.n, KT_SEGMENT) * a.weights.units * (dual ? 2 : 1);
  if (a.chunks > ctx->multiprocessors * (int64_t)MAX_CHUNKS) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "a weight of %d tiles of rows is too long for a few tokens", a.weights.units);
  a.tokens = (int)x.count;
  a.x = x.data, a.x_stride = x.stride;
  a.n = (int)x.n;
  a.add = products[0].add, a.act = products[0].act;
  void *memory = NULL;
  KT_TRY(kt_gpu_counters(ctx, a.weights.units, &a.arrived));
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PARTIAL, (int64_t)a.chunks * tiles * KT_WARP * 16, &memory));
  a.partial = (float4 *)memory;
  switch (type) {
    case KT_Q4_K: return of_kind<KT_Q4_K>(ctx, a, dual);
    case KT_Q6_K: return of_kind<KT_Q6_K>(ctx, a, dual);
    default: return of_kind<KT_Q8_0>(ctx, a, dual);
  }
}
#else
bool kt_gpu_takes_rows(const kt_ctx *, const kt_weight &, int64_t, int64_t) { return false; }
kt_status_t kt_gpu_rows(kt_ctx *, kt_frows, const kt_product *, int) { return kt_gpu_fail(KT_ERR_INTERNAL, "tensor cores are not here"); }
#endif
