/* Products of one row of activations with dense matrices: blocks that stay, weights by bulk copies, int8 tensor cores.
 * SHAPES       x [1, n] f32, codes made here after an optional norm; packed weights of up to three matrices with common columns
 * DEFINITION   out[r] = x . w[r] (+ bias[r]) (+ out[r]), or act(gate . x, up . x) of two weights
 * REGULARITIES one block a multiprocessor takes tiles of 16 rows by turns. A warp copies segments of a tile's rows into a ring in shared
 *              memory, from before the kernel ahead ends; eight warps have an eighth of a segment each, 256 columns in 8 blocks of 32.
 *              mma.m16n8k32 is given block 4 i + t of both rows by lane t of four, and codes of x only where column n of the right operand
 *              is that block: sum n of a row is its block n's, so that one product each for rows and blocks takes scales. Shared memory
 *              leaves room for a second block, which is the next kernel's */
#include "activation.cuh"
#include "ring.cuh"

#if KT_HAS_MMA
#define WARPS KT_RING_WARPS
#define CONSUMERS (WARPS * KT_WARP)
#define THREADS (CONSUMERS + KT_WARP)
#define TILE_ROWS KT_RING_ROWS
#define SPAN KT_RING_SPAN
#define HELD_TILES 16 /* whose sums wait in shared memory until they are added up */
#define SUMS_BYTES (HELD_TILES * WARPS * TILE_ROWS * 4)

struct row_args {
  kt_ring_parts weights;
  int n;
  const float *x, *norm_weight;
  float eps, offset;
  bool add;
  uint32_t act;
};

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ float half_of(uint32_t bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }
__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory"); }

template <bool SIGNED> __device__ __forceinline__ void multiply(int *c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (SIGNED)
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Adds a warp's columns of rows lane / 4 and lane / 4 + 8 to acc. w: the segment of `columns` columns of the first; span: which 256 of them;
 * codes, scales: x's of these. A scale is (d, d times the sum of codes, the sums of both halves as integers). */
template <uint32_t TYPE> __device__ __forceinline__ void add_span(const uint8_t *w, int columns, int span, const uint8_t *codes, const float4 *scales, float *acc) {
  constexpr int PITCH = kt_ring_pitch(TYPE);
  constexpr bool NIBBLES = TYPE == KT_Q4_K || TYPE == KT_Q4_0 || TYPE == KT_Q4_1;
  constexpr uint32_t LOW = 0x0f0f0f0f, HIGH = 0xf0f0f0f0, TOP = 0x30303030;
  const int lane = threadIdx.x % KT_WARP, group = lane / 4, t = lane % 4, super_blocks = columns / 256;
  int c[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int block = 8 * span + 4 * i + t;
    uint4 x = make_uint4(0, 0, 0, 0), y = make_uint4(0, 0, 0, 0);
    if (group == 4 * i + t) x = *(const uint4 *)(codes + group * 32), y = *(const uint4 *)(codes + group * 32 + 16);
    if constexpr (NIBBLES) {
      const uint4 p = *(const uint4 *)(w + block * 16), q = *(const uint4 *)(w + 8 * PITCH + block * 16);
      /* low nibbles, then high ones times 16 */
      const uint4 low = TYPE == KT_Q4_K ? make_uint4(x.x, x.z, y.x, y.z) : x, high = TYPE == KT_Q4_K ? make_uint4(x.y, x.w, y.y, y.w) : y;
      multiply<false>(c[0], p.x & LOW, q.x & LOW, p.y & LOW, q.y & LOW, low.x, low.y);
      multiply<false>(c[1], p.x & HIGH, q.x & HIGH, p.y & HIGH, q.y & HIGH, high.x, high.y);
      multiply<false>(c[0], p.z & LOW, q.z & LOW, p.w & LOW, q.w & LOW, low.z, low.w);
      multiply<false>(c[1], p.z & HIGH, q.z & HIGH, p.w & HIGH, q.w & HIGH, high.z, high.w);
    } else if constexpr (TYPE == KT_Q6_K) {
      const uint4 p = *(const uint4 *)(w + block * 16), q = *(const uint4 *)(w + 8 * PITCH + block * 16);
      const uint2 ph = *(const uint2 *)(w + super_blocks * 128 + block * 8), qh = *(const uint2 *)(w + 8 * PITCH + super_blocks * 128 + block * 8);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint32_t p0 = h == 0 ? p.x : p.z, p1 = h == 0 ? p.y : p.w, q0 = h == 0 ? q.x : q.z, q1 = h == 0 ? q.y : q.w, pb = h == 0 ? ph.x : ph.y, qb = h == 0 ? qh.x : qh.y;
        const uint4 v = h == 0 ? x : y;
        multiply<false>(c[h], (p0 & LOW) | (pb << 4 & TOP), (q0 & LOW) | (qb << 4 & TOP), (p0 >> 4 & LOW) | (pb << 2 & TOP), (q0 >> 4 & LOW) | (qb << 2 & TOP), v.x, v.y);
        multiply<false>(c[h], (p1 & LOW) | (pb & TOP), (q1 & LOW) | (qb & TOP), (p1 >> 4 & LOW) | (pb >> 2 & TOP), (q1 >> 4 & LOW) | (qb >> 2 & TOP), v.z, v.w);
      }
    } else {
      const uint4 p = *(const uint4 *)(w + block * 32), q = *(const uint4 *)(w + 8 * PITCH + block * 32);
      const uint4 r = *(const uint4 *)(w + block * 32 + 16), s = *(const uint4 *)(w + 8 * PITCH + block * 32 + 16);
      multiply<true>(c[0], p.x, q.x, p.y, q.y, x.x, x.y);
      multiply<true>(c[1], r.x, s.x, r.y, s.y, y.x, y.y);
      multiply<true>(c[0], p.z, q.z, p.w, q.w, x.z, x.w);
      multiply<true>(c[1], r.z, s.z, r.w, s.w, y.z, y.w);
    }
  }
  /* this lane's blocks are 2 t and 2 t + 1 */
  const float4 s0 = scales[2 * t], s1 = scales[2 * t + 1];
  const int pair = 8 * span + 2 * t;
  const bool has_first = pair * 32 < columns, has_second = (pair + 1) * 32 < columns;
#pragma unroll
  for (int r = 0; r < 2; r++, w += 8 * PITCH) {
    const int a0 = c[0][2 * r], a1 = c[0][2 * r + 1], b0 = c[1][2 * r], b1 = c[1][2 * r + 1];
    if constexpr (TYPE == KT_Q4_K) {
      const uint32_t sub = *(const uint32_t *)(w + super_blocks * 128 + pair * 2), both = *(const uint32_t *)(w + super_blocks * 144 + span * 4);
      const float sum = s0.x * (float)((16 * a0 + b0) * (int)(sub & 255)) + s1.x * (float)((16 * a1 + b1) * (int)(sub >> 16 & 255));
      acc[r] += half_of(both & 0xffff) * 0.0625f * sum - half_of(both >> 16) * (s0.y * (float)(sub >> 8 & 255) + s1.y * (float)(sub >> 24));
    } else if constexpr (TYPE == KT_Q6_K) {
      const uint32_t sub = *(const uint32_t *)(w + super_blocks * 192 + pair * 2);
      const int first = (a0 - 32 * __float_as_int(s0.z)) * (int)(int8_t)sub + (b0 - 32 * __float_as_int(s0.w)) * (int)(int8_t)(sub >> 8);
      const int second = (a1 - 32 * __float_as_int(s1.z)) * (int)(int8_t)(sub >> 16) + (b1 - 32 * __float_as_int(s1.w)) * (int)(int8_t)(sub >> 24);
      acc[r] += half_of(*(const uint16_t *)(w + super_blocks * 208 + span * 2)) * (s0.x * (float)first + s1.x * (float)second);
    } else if constexpr (TYPE == KT_Q4_1) {
      const uint2 both = *(const uint2 *)(w + columns / 2 + pair * 4);
      const float first = 0.0625f * s0.x * (float)(16 * a0 + b0), second = 0.0625f * s1.x * (float)(16 * a1 + b1);
      if (has_first) acc[r] += half_of(both.x & 0xffff) * first + half_of(both.x >> 16) * s0.y;
      if (has_second) acc[r] += half_of(both.y & 0xffff) * second + half_of(both.y >> 16) * s1.y;
    } else {
      const uint32_t both = *(const uint32_t *)(w + (TYPE == KT_Q4_0 ? columns / 2 : columns) + pair * 2);
      const float first = TYPE == KT_Q4_0 ? 0.0625f * s0.x * (float)(16 * a0 + b0) - 8.0f * s0.y : s0.x * (float)(a0 + b0);
      const float second = TYPE == KT_Q4_0 ? 0.0625f * s1.x * (float)(16 * a1 + b1) - 8.0f * s1.y : s1.x * (float)(a1 + b1);
      if (has_first) acc[r] += half_of(both & 0xffff) * first;
      if (has_second) acc[r] += half_of(both >> 16) * second;
    }
  }
}

/* TYPE 0: as `type` says. */
template <uint32_t TYPE> __device__ __forceinline__ void add_any(uint32_t type, const uint8_t *slot, int columns, int span, const uint8_t *codes, const float4 *scales, float *acc) {
  const int group = threadIdx.x % KT_WARP / 4;
  if constexpr (TYPE != 0) return add_span<TYPE>(slot + group * kt_ring_pitch(TYPE), columns, span, codes, scales, acc);
  switch (type) {
    case KT_Q4_K: return add_span<KT_Q4_K>(slot + group * kt_ring_pitch(KT_Q4_K), columns, span, codes, scales, acc);
    case KT_Q6_K: return add_span<KT_Q6_K>(slot + group * kt_ring_pitch(KT_Q6_K), columns, span, codes, scales, acc);
    case KT_Q4_0: return add_span<KT_Q4_0>(slot + group * kt_ring_pitch(KT_Q4_0), columns, span, codes, scales, acc);
    case KT_Q4_1: return add_span<KT_Q4_1>(slot + group * kt_ring_pitch(KT_Q4_1), columns, span, codes, scales, acc);
    default: return add_span<KT_Q8_0>(slot + group * kt_ring_pitch(KT_Q8_0), columns, span, codes, scales, acc);
  }
}

__device__ __forceinline__ float consumers_sum(float v, float *shared) {
  v = kt_warp_sum(v);
  if (threadIdx.x % KT_WARP == 0) shared[threadIdx.x / KT_WARP] = v;
  consumers_sync();
  return kt_warp_sum((threadIdx.x % KT_WARP) < WARPS ? shared[threadIdx.x % KT_WARP] : 0.0f);
}

/* Codes of x, or of its norm, zeros behind them to a whole span. The kernel ahead is waited for here. */
template <int BATCH> __device__ __forceinline__ void quantize_row(const row_args &a, uint8_t *codes, float4 *scales, float *shared) {
  const int quads = a.n / 4, all = (a.n + SPAN - 1) / SPAN * (SPAN / 4), thread = threadIdx.x;
  constexpr bool AHEAD = BATCH <= 4; /* registers for weights of the norm, which are there before x is */
  float4 v[BATCH], w[AHEAD ? BATCH : 1];
  if (AHEAD && a.norm_weight != NULL)
#pragma unroll
    for (int j = 0; j < BATCH; j++) w[AHEAD ? j : 0] = j * CONSUMERS + thread < quads ? __ldg((const float4 *)a.norm_weight + j * CONSUMERS + thread) : make_float4(0, 0, 0, 0);
  kt_wait_previous();
  float factor = 1.0f;
  for (int base = 0; base < all; base += BATCH * CONSUMERS) {
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
      const int i = base + j * CONSUMERS + thread;
      v[j] = i < quads ? __ldcg((const float4 *)a.x + i) : make_float4(0, 0, 0, 0);
    }
    if (a.norm_weight != NULL && base == 0) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < BATCH; j++) sum += v[j].x * v[j].x + v[j].y * v[j].y + (v[j].z * v[j].z + v[j].w * v[j].w);
      for (int i = BATCH * CONSUMERS + thread; i < quads; i += CONSUMERS) {
        const float4 u = __ldcg((const float4 *)a.x + i);
        sum += u.x * u.x + u.y * u.y + (u.z * u.z + u.w * u.w);
      }
      factor = 1.0f / sqrtf(consumers_sum(sum, shared) / (float)a.n + a.eps);
    }
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
      const int i = base + j * CONSUMERS + thread;
      if (base + j * CONSUMERS >= all) break;
      float4 y = v[j];
      if (a.norm_weight != NULL) {
        const float4 u = AHEAD && base == 0 ? w[AHEAD ? j : 0] : i < quads ? __ldg((const float4 *)a.norm_weight + i) : make_float4(0, 0, 0, 0);
        y = make_float4(y.x * factor * (u.x + a.offset), y.y * factor * (u.y + a.offset), y.z * factor * (u.z + a.offset), y.w * factor * (u.w + a.offset));
      }
      /* eight lanes a block of 32 values */
      float most = fmaxf(fmaxf(fabsf(y.x), fabsf(y.y)), fmaxf(fabsf(y.z), fabsf(y.w)));
#pragma unroll
      for (int lane = 4; lane > 0; lane /= 2) most = fmaxf(most, __shfl_xor_sync(KT_FULL_MASK, most, lane));
      const float d = most / 127.0f, inverse = d == 0 ? 0.0f : 1.0f / d;
      const int q0 = __float2int_rn(y.x * inverse), q1 = __float2int_rn(y.y * inverse), q2 = __float2int_rn(y.z * inverse), q3 = __float2int_rn(y.w * inverse);
      int sum = q0 + q1 + q2 + q3;
      sum += __shfl_xor_sync(KT_FULL_MASK, sum, 1);
      sum += __shfl_xor_sync(KT_FULL_MASK, sum, 2);
      const int other = __shfl_xor_sync(KT_FULL_MASK, sum, 4);
      if (i >= all) continue;
      *(char4 *)(codes + 4 * i) = make_char4((signed char)q0, (signed char)q1, (signed char)q2, (signed char)q3);
      if (thread % 8 == 0) scales[i / 8] = make_float4(d, d * (float)(sum + other), __int_as_float(sum), __int_as_float(other));
    }
  }
  consumers_sync();
}
#endif

template <uint32_t TYPE, bool DUAL> __global__ void __launch_bounds__(THREADS, 2) row_kernel(const __grid_constant__ row_args a) {
#if __CUDA_ARCH__ >= 900
  constexpr int STREAMS = DUAL ? 2 : 1;
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ float shared[WARPS];
  float *sums = (float *)(memory + KT_RING_BARRIERS); /* [HELD_TILES][WARPS][TILE_ROWS] */
  uint8_t *ring = memory + KT_RING_BARRIERS + SUMS_BYTES, *codes = ring + a.weights.slots * a.weights.slot_bytes;
  float4 *scales = (float4 *)(codes + (a.n + SPAN - 1) / SPAN * SPAN);
  const uint32_t full = kt_shared(memory), empty = full + KT_RING_SLOTS * 8;
  const int thread = threadIdx.x, warp = thread / KT_WARP, lane = thread % KT_WARP, segments = (a.n + KT_SEGMENT - 1) / KT_SEGMENT;
  if (thread == 0) {
    for (int i = 0; i < a.weights.slots; i++) kt_barrier_init(full + 8 * i, 1), kt_barrier_init(empty + 8 * i, WARPS);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (warp == WARPS) {
    kt_ring_writer writer(full, empty, kt_shared(ring));
    for (int unit = (int)blockIdx.x; unit < a.weights.units; unit += (int)gridDim.x) {
      int row;
      const int pitch = kt_ring_pitch(TYPE != 0 ? TYPE : a.weights.parts[kt_ring_part(a.weights, unit, &row)].type);
#pragma unroll
      for (int s = 0; s < STREAMS; s++)
        for (int segment = 0; segment < segments; segment++) writer.copy(a.weights, unit, s, segment, a.n, pitch);
    }
    return;
  }
  if (a.n <= 16 * CONSUMERS) quantize_row<4>(a, codes, scales, shared);
  else quantize_row<16>(a, codes, scales, shared);
  kt_start_next();
  int slot = 0;
  uint32_t parity = 0;
  /* a thread a row of the tiles whose sums are held */
  constexpr int HELD_UNITS = HELD_TILES / STREAMS;
  const auto own_row = [&](int first) {
    const int unit = first + thread / TILE_ROWS * (int)gridDim.x;
    int row = 0;
    if (thread >= HELD_UNITS * TILE_ROWS || unit >= a.weights.units) return (float *)NULL;
    const kt_stream_part &p = a.weights.parts[kt_ring_part(a.weights, unit, &row)];
    row += thread % TILE_ROWS;
    return row < p.rows ? p.out + row : (float *)NULL;
  };
  for (int first = (int)blockIdx.x; first < a.weights.units; first += HELD_UNITS * (int)gridDim.x) {
    float before = 0;
    if (a.add) {
      const float *to = own_row(first);
      if (to != NULL) before = __ldcg(to);
    }
    float *held = sums + warp * TILE_ROWS + lane / 4;
    for (int i = 0, unit = first; i < HELD_UNITS && unit < a.weights.units; i++, unit += (int)gridDim.x) {
      int row;
      const uint32_t type = TYPE != 0 ? TYPE : a.weights.parts[kt_ring_part(a.weights, unit, &row)].type;
#pragma unroll
      for (int s = 0; s < STREAMS; s++) {
        float acc[2] = {0, 0};
        for (int segment = 0; segment < segments; segment++) {
          const int columns = min(KT_SEGMENT, a.n - segment * KT_SEGMENT), at = segment * KT_SEGMENT + warp * SPAN;
          kt_barrier_wait(full + 8 * slot, parity);
          if (warp * SPAN < columns) add_any<TYPE>(type, ring + slot * a.weights.slot_bytes, columns, warp, codes + at, scales + at / 32, acc);
          __syncwarp();
          if (lane == 0) kt_barrier_arrive(empty + 8 * slot);
          if (++slot == a.weights.slots) slot = 0, parity ^= 1;
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
          acc[r] += __shfl_xor_sync(KT_FULL_MASK, acc[r], 1);
          acc[r] += __shfl_xor_sync(KT_FULL_MASK, acc[r], 2);
        }
        if (lane % 4 < 2) held[lane % 4 * 8] = lane % 4 == 0 ? acc[0] : acc[1];
        held += WARPS * TILE_ROWS;
      }
    }
    consumers_sync();
    float *to = own_row(first);
    if (to != NULL) {
      const float *from = sums + thread / TILE_ROWS * (STREAMS * WARPS * TILE_ROWS) + thread % TILE_ROWS;
      float value = 0, other = 0;
#pragma unroll
      for (int i = 0; i < WARPS; i++) {
        value += from[i * TILE_ROWS];
        if (DUAL) other += from[(WARPS + i) * TILE_ROWS];
      }
      int row;
      const kt_stream_part &p = a.weights.parts[kt_ring_part(a.weights, first + thread / TILE_ROWS * (int)gridDim.x, &row)];
      if (p.bias != NULL) value += __ldg(p.bias + row + thread % TILE_ROWS);
      if (DUAL) value = kt_activate(a.act, value, other);
      *to = before + value;
    }
    consumers_sync();
  }
#endif
}

static bool aligned16(const void *p) { return (uintptr_t)p % 16 == 0; }

template <uint32_t TYPE> static kt_status_t launch(kt_ctx *ctx, const row_args &a, bool dual, size_t bytes) {
  const auto kernel = dual ? row_kernel<TYPE, true> : row_kernel<TYPE, false>;
  KT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, KT_RING_BYTES));
  const int blocks = a.weights.units < ctx->multiprocessors ? a.weights.units : ctx->multiprocessors;
  return kt_launch_early(ctx, kernel, dim3((unsigned)blocks), dim3(THREADS), bytes, a);
}

bool kt_gpu_row(kt_ctx *ctx, kt_frows x, const kt_norm *norm, const kt_product *products, int count, kt_status_t *status) {
  if (!kt_has_bulk(ctx) || x.count != 1 || x.n % 32 != 0 || x.n > 65536 || !aligned16(x.data) || (norm != NULL && (norm->weight == NULL || !aligned16(norm->weight)))) return false;
  row_args a = {};
  a.weights.num_parts = count;
  a.n = (int)x.n;
  a.x = x.data;
  if (norm != NULL) a.norm_weight = norm->weight, a.eps = norm->eps, a.offset = norm->offset;
  a.add = products[0].add;
  a.act = products[0].act;
  const bool dual = products[0].up.data != NULL;
  uint32_t type = products[0].w.type & ~KT_PACKED_BIT;
  for (int i = 0; i < count; i++) {
    const kt_product &p = products[i];
    if (!kt_has_int8(p.w.type) || !aligned16(p.w.data) || (dual && (p.up.type != p.w.type || !aligned16(p.up.data)))) return false;
    const uint32_t own = p.w.type & ~KT_PACKED_BIT;
    a.weights.parts[i] = kt_ring_part_of(p);
    a.weights.units += (int)kt_div_up(p.rows, TILE_ROWS);
    if (own != type) type = 0;
    if (TILE_ROWS * kt_ring_pitch(own) > a.weights.slot_bytes) a.weights.slot_bytes = TILE_ROWS * kt_ring_pitch(own);
  }
  const int64_t held = KT_RING_BARRIERS + SUMS_BYTES + kt_div_up(x.n, SPAN) * (SPAN + SPAN / 32 * 16), slots = (KT_RING_BYTES - held) / a.weights.slot_bytes;
  if (slots < 2) return false;
  a.weights.slots = (int)(slots < KT_RING_SLOTS ? slots : KT_RING_SLOTS);
  const size_t bytes = (size_t)(held + (int64_t)a.weights.slots * a.weights.slot_bytes);
  switch (type) {
    case KT_Q4_K: *status = launch<KT_Q4_K>(ctx, a, dual, bytes); break;
    case KT_Q6_K: *status = launch<KT_Q6_K>(ctx, a, dual, bytes); break;
    case KT_Q8_0: *status = launch<KT_Q8_0>(ctx, a, dual, bytes); break;
    case KT_Q4_0: *status = launch<KT_Q4_0>(ctx, a, dual, bytes); break;
    default: *status = launch<0>(ctx, a, dual, bytes);
  }
  return true;
}
#else
bool kt_gpu_row(kt_ctx *, kt_frows, const kt_norm *, const kt_product *, int, kt_status_t *) { return false; }
#endif
