/* Products of experts for a few rows of activations: blocks that stay, a warp a row, weights by bulk copies.
 * SHAPES       x [rows, n] f32, codes made here; packed weights of stacks of experts
 * DEFINITION   out[pair][r] = act(gate . x, up . x) of the pair's expert; out[token][r] (+)= sum of its pairs' w[r] . x times their weights
 * REGULARITIES one block a multiprocessor; each warp has its own ring of chunks in shared memory (KT_SEGMENT columns of a row), filled
 *              before the kernel waits for the one ahead of it where ids are known, so that memory is read while that one ends. Shared
 *              memory leaves room for a second block, which is the next kernel's */
#include "activation.cuh"
#include "async.cuh"
#include "products.cuh"

#if KT_HAS_MMA
#define WARPS 16
#define THREADS (WARPS * KT_WARP)
#define MAX_SLOTS 8
/* Shared memory of a block: two fit a multiprocessor. */
#define SHARED_BYTES (110 * 1024)
#define BARRIER_BYTES (WARPS * MAX_SLOTS * 8)
#define MAX_PAIRS 128

struct stream_args {
  kt_stream_part parts[KT_STREAM_PARTS];
  int num_parts, total; /* rows of all parts, or of all pairs or tokens */
  int n, slots, slot_bytes;
  const float *x; /* [x_rows][n] */
  int64_t x_stride;
  int x_rows;
  const float *norm_weight;
  float eps, offset;
  bool add;
  uint32_t act;
  /* experts */
  kt_expert_pairs pairs;
  const float *weights; /* of pairs, or NULL: ones */
  int64_t weights_stride, out_stride;
  bool known_ids; /* nobody who runs still writes ids */
};

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ float half_of(uint32_t bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }
__device__ __forceinline__ int dot4(uint32_t q, uint32_t x, int sum) { return __dp4a((int)q, (int)x, sum); }
__device__ __forceinline__ int dot16(uint4 q, uint4 x) { return dot4(q.w, x.w, dot4(q.z, x.z, dot4(q.y, x.y, dot4(q.x, x.x, 0)))); }
__device__ __forceinline__ uint4 nibbles(uint4 q, int shift) {
  return make_uint4(q.x >> shift & 0x0f0f0f0f, q.y >> shift & 0x0f0f0f0f, q.z >> shift & 0x0f0f0f0f, q.w >> shift & 0x0f0f0f0f);
}
/* Where 16 codes lie: moved about so that lanes that read codes 32, 64 or 128 apart find them in different banks. */
__device__ __forceinline__ int place16(int i) {
  const int v = i >> 3 & 3;
  return i ^ (v << 1 | (v & 1));
}
/* Activations of one piece: 32 codes (Q8_0: 16) and, of their block of 32, the scale, the scale times the sum of codes, and the sums of both
 * halves as integers. x and s: of piece c, which is the lane's of its segment or KT_WARP pieces on. */
template <uint32_t TYPE> struct inputs {
  uint4 a, b;
  float4 s;
  __device__ __forceinline__ void load(const uint8_t *x, const uint8_t *s_, int x0, int x1, int scale) {
    a = *(const uint4 *)(x + x0);
    if constexpr (TYPE != KT_Q8_0) b = *(const uint4 *)(x + x1);
    s = *(const float4 *)(s_ + scale);
  }
};
/* Byte offsets of these. */
template <uint32_t TYPE> __device__ __forceinline__ int first_place(int c) { return place16(TYPE == KT_Q8_0 ? c : 2 * c) * 16; }
template <uint32_t TYPE> __device__ __forceinline__ int second_place(int c) { return place16(2 * c + 1) * 16; }
template <uint32_t TYPE> __device__ __forceinline__ int scale_place(int c) { return (TYPE == KT_Q8_0 ? c >> 1 : c) * 16; }

/* w: the segment of `columns` columns; c: the piece. */
template <uint32_t TYPE> __device__ __forceinline__ float times(const uint8_t *w, int columns, int c, const inputs<TYPE> &x) {
  const uint4 q = *(const uint4 *)(w + c * 16);
  if constexpr (TYPE == KT_Q4_K) {
    const int blocks = columns >> 8;
    const uint32_t scales = *(const uint16_t *)(w + blocks * 128 + c * 2), both = *(const uint32_t *)(w + blocks * 144 + (c >> 3) * 4);
    const uint4 low = nibbles(q, 0), high = nibbles(q, 4);
    const int dot = dot4(low.y, x.a.z, dot4(high.x, x.a.y, dot4(low.x, x.a.x, 0))) + dot4(high.z, x.b.y, dot4(low.z, x.b.x, dot4(high.y, x.a.w, 0))) + dot4(high.w, x.b.w, dot4(low.w, x.b.z, 0));
    return half_of(both & 0xffff) * (x.s.x * (float)(dot * (int)(scales & 255))) - half_of(both >> 16) * ((float)(int)(scales >> 8) * x.s.y);
  } else if constexpr (TYPE == KT_Q6_K) {
    const int blocks = columns >> 8;
    const uint2 high = *(const uint2 *)(w + blocks * 128 + c * 8);
    const uint32_t scales = *(const uint16_t *)(w + blocks * 192 + c * 2);
    int dot[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint32_t bits = h == 0 ? high.x : high.y, first = h == 0 ? q.x : q.z, second = h == 0 ? q.y : q.w;
      const uint4 codes = h == 0 ? x.a : x.b;
      const int even = dot4((second & 0x0f0f0f0f) | (bits & 0x30303030), codes.z, dot4((first & 0x0f0f0f0f) | (bits << 4 & 0x30303030), codes.x, 0));
      const int odd = dot4((second >> 4 & 0x0f0f0f0f) | (bits >> 2 & 0x30303030), codes.w, dot4((first >> 4 & 0x0f0f0f0f) | (bits << 2 & 0x30303030), codes.y, 0));
      dot[h] = even + odd - 32 * __float_as_int(h == 0 ? x.s.z : x.s.w);
    }
    return half_of(*(const uint16_t *)(w + blocks * 208 + (c >> 3) * 2)) * (x.s.x * (float)(dot[0] * (int)(int8_t)scales + dot[1] * (int)(int8_t)(scales >> 8)));
  } else if constexpr (TYPE == KT_Q4_0 || TYPE == KT_Q4_1) {
    const float sum = x.s.x * (float)(dot16(nibbles(q, 0), x.a) + dot16(nibbles(q, 4), x.b));
    if constexpr (TYPE == KT_Q4_0) return half_of(*(const uint16_t *)(w + columns / 2 + c * 2)) * (sum - 8.0f * x.s.y);
    const uint32_t both = *(const uint32_t *)(w + columns / 2 + c * 4);
    return half_of(both & 0xffff) * sum + half_of(both >> 16) * x.s.y;
  } else {
    return half_of(*(const uint16_t *)(w + columns + (c >> 1) * 2)) * x.s.x * (float)dot16(q, x.a);
  }
}

/* Sums of a segment of each of STREAMS rows (`apart` bytes apart) with the same activations. */
template <uint32_t TYPE, int STREAMS> __device__ __forceinline__ void segment_sums(const uint8_t *w, int apart, int columns, const uint8_t *x, const uint8_t *s, int lane, float *acc) {
  constexpr int VALUES = TYPE == KT_Q8_0 ? 16 : 32, AHEAD = KT_WARP * VALUES;
  if (columns == KT_SEGMENT) {
    const int x0 = first_place<TYPE>(lane), x1 = second_place<TYPE>(lane), scale = scale_place<TYPE>(lane);
#pragma unroll
    for (int i = 0; i < KT_SEGMENT / AHEAD; i++) {
      inputs<TYPE> in;
      in.load(x + i * AHEAD, s + i * AHEAD / 2, x0, x1, scale);
#pragma unroll
      for (int r = 0; r < STREAMS; r++) acc[r] += times<TYPE>(w + r * apart, KT_SEGMENT, lane + i * KT_WARP, in);
    }
  } else {
    for (int c = lane; c < columns / VALUES; c += KT_WARP) {
      inputs<TYPE> in;
      in.load(x, s, first_place<TYPE>(c), second_place<TYPE>(c), scale_place<TYPE>(c));
#pragma unroll
      for (int r = 0; r < STREAMS; r++) acc[r] += times<TYPE>(w + r * apart, columns, c, in);
    }
  }
}

/* TYPE 0: as `type` says. */
template <uint32_t TYPE, int STREAMS>
__device__ __forceinline__ void any_sums(uint32_t type, const uint8_t *w, int apart, int columns, const uint8_t *x, const uint8_t *s, int lane, float *acc) {
  if constexpr (TYPE != 0) return segment_sums<TYPE, STREAMS>(w, apart, columns, x, s, lane, acc);
  switch (type) {
    case KT_Q4_K: return segment_sums<KT_Q4_K, STREAMS>(w, apart, columns, x, s, lane, acc);
    case KT_Q6_K: return segment_sums<KT_Q6_K, STREAMS>(w, apart, columns, x, s, lane, acc);
    case KT_Q4_0: return segment_sums<KT_Q4_0, STREAMS>(w, apart, columns, x, s, lane, acc);
    case KT_Q4_1: return segment_sums<KT_Q4_1, STREAMS>(w, apart, columns, x, s, lane, acc);
    default: return segment_sums<KT_Q8_0, STREAMS>(w, apart, columns, x, s, lane, acc);
  }
}

/* Codes of x's rows, or of the norm of its one row, into shared memory; all threads. */
__device__ __forceinline__ void quantize_rows(const stream_args &a, uint8_t *codes, int codes_bytes, float4 *scales, float *shared) {
  constexpr int BATCH = 4;
  const int quads = a.n / 4, all = quads * a.x_rows, thread = threadIdx.x;
  float factor = 1.0f;
  float4 v[BATCH];
  for (int base = 0; base < all; base += BATCH * THREADS) {
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
      const int i = base + j * THREADS + thread, row = a.x_rows == 1 ? 0 : i / quads;
      v[j] = i < all ? __ldcg((const float4 *)(a.x + row * a.x_stride) + (i - row * quads)) : make_float4(0, 0, 0, 0);
    }
    if (a.norm_weight != NULL && base == 0) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < BATCH; j++) sum += v[j].x * v[j].x + v[j].y * v[j].y + (v[j].z * v[j].z + v[j].w * v[j].w);
      for (int i = BATCH * THREADS + thread; i < all; i += THREADS) {
        const float4 w = __ldcg((const float4 *)a.x + i);
        sum += w.x * w.x + w.y * w.y + (w.z * w.z + w.w * w.w);
      }
      factor = 1.0f / sqrtf(kt_block_sum(sum, shared) / (float)a.n + a.eps);
    }
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
      if (base + j * THREADS >= all) break;
      const int i = base + j * THREADS + thread, row = a.x_rows == 1 ? 0 : i / quads, column = i - row * quads;
      float4 y = v[j];
      if (a.norm_weight != NULL && i < all) {
        const float4 w = __ldg((const float4 *)a.norm_weight + i);
        y = make_float4(y.x * factor * (w.x + a.offset), y.y * factor * (w.y + a.offset), y.z * factor * (w.z + a.offset), y.w * factor * (w.w + a.offset));
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
      *(char4 *)(codes + row * codes_bytes + place16(column >> 2) * 16 + (column & 3) * 4) = make_char4((signed char)q0, (signed char)q1, (signed char)q2, (signed char)q3);
      if (thread % 8 == 0) scales[row * (a.n / 32) + column / 8] = make_float4(d, d * (float)(sum + other), __int_as_float(sum), __int_as_float(other));
    }
  }
}

/* One warp's chunks, in the order in which they are computed with. */
struct ring {
  uint32_t barriers, data;
  const uint8_t *base;
  int slots, slot_bytes, to_issue, to_use;
  uint32_t parity;
  uint64_t policy;
  __device__ __forceinline__ void begin(const stream_args &a, uint8_t *memory) {
    const int warp = threadIdx.x / KT_WARP;
    barriers = kt_shared(memory) + (uint32_t)(warp * MAX_SLOTS * 8);
    base = memory + BARRIER_BYTES + (int64_t)warp * a.slots * a.slot_bytes;
    data = kt_shared(base);
    slots = a.slots, slot_bytes = a.slot_bytes, to_issue = to_use = 0, parity = 0;
    policy = kt_evict_first();
    if (threadIdx.x % KT_WARP == 0) {
      for (int i = 0; i < slots; i++) kt_barrier_init(barriers + 8 * i, 1);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
  }
  /* One row's bytes, or two rows'. */
  template <int STREAMS> __device__ __forceinline__ void issue(const uint8_t *from, const uint8_t *second, int bytes) {
    const int slot = to_issue;
    if (++to_issue == slots) to_issue = 0;
    if (threadIdx.x % KT_WARP == 0) {
      kt_barrier_expect(barriers + 8 * slot, (uint32_t)(STREAMS * bytes));
      kt_bulk_copy(data + (uint32_t)(slot * slot_bytes), from, (uint32_t)bytes, barriers + 8 * slot, policy);
      if (STREAMS == 2) kt_bulk_copy(data + (uint32_t)(slot * slot_bytes + slot_bytes / 2), second, (uint32_t)bytes, barriers + 8 * slot, policy);
    }
  }
  /* The oldest chunk, once it is there. */
  __device__ __forceinline__ const uint8_t *next() {
    const int slot = to_use;
    kt_barrier_wait(barriers + 8 * slot, parity);
    if (++to_use == slots) to_use = 0, parity ^= 1;
    return base + slot * slot_bytes;
  }
};
#endif

/* A pair's rows of gate and up: out[pair][row]. */
template <uint32_t TYPE> __global__ void __launch_bounds__(THREADS, 2) stream_pairs_kernel(const __grid_constant__ stream_args a) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ float shared[32];
  __shared__ int ids[MAX_PAIRS];
  const int lane = threadIdx.x % KT_WARP, chunks = (a.n + KT_SEGMENT - 1) / KT_SEGMENT, rows = a.parts[0].rows;
  const int first = (int)(threadIdx.x / KT_WARP * gridDim.x + blockIdx.x), step = (int)gridDim.x * WARPS;
  const int codes_bytes = (a.n + 511) / 512 * 512, blocks = a.n / 32;
  uint8_t *codes = memory + BARRIER_BYTES + WARPS * a.slots * a.slot_bytes;
  float4 *scales = (float4 *)(codes + codes_bytes * a.x_rows);
  const kt_stream_part &p = a.parts[0];
  ring r;
  r.begin(a, memory);
  kt_wait_previous();
  const int num_pairs = (int)(a.pairs.tokens * a.pairs.k), k = (int)a.pairs.k;
  if ((int)threadIdx.x < num_pairs) ids[threadIdx.x] = __ldcg(a.pairs.ids + (int)threadIdx.x / k * a.pairs.ids_stride + (int)threadIdx.x % k);
  __syncthreads();
  int ahead = first, ahead_chunk = 0;
  const auto issue = [&]() {
    /* rows of experts outside the stack have no chunks */
    while (ahead < a.total && (uint32_t)ids[ahead / rows] >= (uint32_t)a.pairs.experts) ahead += step;
    if (ahead >= a.total) return;
    const int64_t from = ids[ahead / rows] * a.pairs.matrix_stride + (int64_t)(ahead % rows) * p.row_bytes + ahead_chunk * p.segment_bytes;
    r.issue<2>(p.w + from, p.up + from, ahead_chunk + 1 < chunks ? p.segment_bytes : p.row_bytes - ahead_chunk * p.segment_bytes);
    if (++ahead_chunk == chunks) ahead_chunk = 0, ahead += step;
  };
  for (int i = 0; i < a.slots; i++) issue();
  quantize_rows(a, codes, codes_bytes, scales, shared);
  __syncthreads();
  kt_start_next();
  for (int at = first; at < a.total; at += step) {
    const int pair = at / rows, row = at % rows, expert = ids[pair];
    float *to = p.out + pair * a.out_stride + row;
    if ((uint32_t)expert >= (uint32_t)a.pairs.experts) {
      if (lane == 0) *to = __int_as_float(0x7fc00000);
      continue;
    }
    const int x_row = a.pairs.rows_by_pair ? pair : pair / k;
    float acc[2] = {0, 0};
    for (int chunk = 0; chunk < chunks; chunk++) {
      any_sums<TYPE, 2>(p.type, r.next(), a.slot_bytes / 2, min(KT_SEGMENT, a.n - chunk * KT_SEGMENT), codes + x_row * codes_bytes + chunk * KT_SEGMENT,
                        (const uint8_t *)(scales + x_row * blocks + chunk * (KT_SEGMENT / 32)), lane, acc);
      __syncwarp();
      issue();
    }
    acc[0] = kt_warp_sum(acc[0]), acc[1] = kt_warp_sum(acc[1]);
    if (lane == 0) {
      const float value = acc[0] + (p.bias != NULL ? __ldg(p.bias + (int64_t)expert * rows + row) : 0.0f);
      *to = kt_activate(a.act, value, acc[1] + (p.up_bias != NULL ? __ldg(p.up_bias + (int64_t)expert * rows + row) : 0.0f));
    }
  }
#endif
}

/* Down projections and the weighted sum of a token's pairs: out[token][row] (+)= sum_j weights[pair] * (w[ids[pair]][row] . x[pair]). */
template <uint32_t TYPE> __global__ void __launch_bounds__(THREADS, 2) stream_down_kernel(const __grid_constant__ stream_args a) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ float shared[32];
  __shared__ int ids[MAX_PAIRS];
  __shared__ float weights[MAX_PAIRS];
  const int lane = threadIdx.x % KT_WARP, chunks = (a.n + KT_SEGMENT - 1) / KT_SEGMENT, rows = a.parts[0].rows, k = (int)a.pairs.k;
  const int first = (int)(threadIdx.x / KT_WARP * gridDim.x + blockIdx.x), step = (int)gridDim.x * WARPS;
  const int codes_bytes = (a.n + 511) / 512 * 512, blocks = a.n / 32;
  uint8_t *codes = memory + BARRIER_BYTES + WARPS * a.slots * a.slot_bytes;
  float4 *scales = (float4 *)(codes + codes_bytes * a.x_rows);
  const kt_stream_part &p = a.parts[0];
  ring r;
  r.begin(a, memory);
  if (!a.known_ids) kt_wait_previous();
  if ((int)threadIdx.x < a.x_rows) {
    ids[threadIdx.x] = __ldcg(a.pairs.ids + (int)threadIdx.x / k * a.pairs.ids_stride + (int)threadIdx.x % k);
    weights[threadIdx.x] = a.weights == NULL ? 1.0f : __ldcg(a.weights + (int)threadIdx.x / k * a.weights_stride + (int)threadIdx.x % k);
  }
  __syncthreads();
  int ahead = first, ahead_pair = 0, ahead_chunk = 0;
  const auto issue = [&]() {
    while (ahead < a.total) {
      const int expert = ids[ahead / rows * k + ahead_pair];
      const bool valid = (uint32_t)expert < (uint32_t)a.pairs.experts;
      if (valid) {
        const uint8_t *from = p.w + expert * a.pairs.matrix_stride + (int64_t)(ahead % rows) * p.row_bytes + ahead_chunk * p.segment_bytes;
        r.issue<1>(from, NULL, ahead_chunk + 1 < chunks ? p.segment_bytes : p.row_bytes - ahead_chunk * p.segment_bytes);
      }
      if (!valid || ++ahead_chunk == chunks) {
        ahead_chunk = 0;
        if (++ahead_pair == k) ahead_pair = 0, ahead += step;
      }
      if (valid) return;
    }
  };
  for (int i = 0; i < a.slots; i++) issue();
  if (a.known_ids) kt_wait_previous();
  quantize_rows(a, codes, codes_bytes, scales, shared);
  __syncthreads();
  kt_start_next();
  for (int at = first; at < a.total; at += step) {
    const int token = at / rows, row = at % rows;
    float *to = p.out + token * a.out_stride + row;
    float before = 0;
    if (lane == 0 && a.add) before = __ldcg(to);
    float acc = 0;
    for (int j = 0; j < k; j++) {
      const int pair = token * k + j, expert = ids[pair];
      if ((uint32_t)expert >= (uint32_t)a.pairs.experts) {
        acc = __int_as_float(0x7fc00000);
        continue;
      }
      float own = 0;
      for (int chunk = 0; chunk < chunks; chunk++) {
        any_sums<TYPE, 1>(p.type, r.next(), 0, min(KT_SEGMENT, a.n - chunk * KT_SEGMENT), codes + pair * codes_bytes + chunk * KT_SEGMENT,
                          (const uint8_t *)(scales + pair * blocks + chunk * (KT_SEGMENT / 32)), lane, &own);
        __syncwarp();
        issue();
      }
      if (lane == 0 && p.bias != NULL) own += __ldg(p.bias + (int64_t)expert * rows + row);
      acc += weights[pair] * own;
    }
    acc = kt_warp_sum(acc);
    if (lane == 0) *to = a.add ? before + acc : acc;
  }
#endif
}

static bool aligned16(const void *p) { return (uintptr_t)p % 16 == 0; }

static bool can_stream(const kt_ctx *ctx, const kt_weight &w, int64_t n) { return kt_has_bulk(ctx) && kt_has_int8(w.type) && n % 32 == 0 && aligned16(w.data); }

static int slots_for(stream_args &a, int streams, int64_t held) {
  a.slot_bytes = 0;
  for (int i = 0; i < a.num_parts; i++) {
    const int longest = streams * (a.n > KT_SEGMENT ? a.parts[i].segment_bytes : a.parts[i].row_bytes);
    if (longest > a.slot_bytes) a.slot_bytes = longest;
  }
  const int64_t slots = (SHARED_BYTES - BARRIER_BYTES - held) / (WARPS * a.slot_bytes);
  a.slots = (int)(slots > MAX_SLOTS ? MAX_SLOTS : slots);
  return a.slots >= 2 ? a.slots : 0;
}

static int64_t held_bytes(int64_t rows, int64_t n) { return rows * (kt_div_up(n, 512) * 512 + n / 32 * 16); }

static kt_status_t launch(kt_ctx *ctx, void (*kernel)(const stream_args), const stream_args &a, int64_t held) {
  const size_t bytes = (size_t)(BARRIER_BYTES + (int64_t)WARPS * a.slots * a.slot_bytes + held);
  KT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES));
  return kt_launch_early(ctx, kernel, dim3((unsigned)ctx->multiprocessors), dim3(THREADS), bytes, a);
}

static kt_stream_part with_bytes(kt_stream_part p, const kt_weight &w) {
  p.type = w.type & ~KT_PACKED_BIT;
  p.row_bytes = (int)w.row_stride;
  p.segment_bytes = (int)kt_packed_row_bytes(p.type, KT_SEGMENT);
  return p;
}

/* The kernel of one type, or of mixed ones. */
#define OF_TYPE(NAME, ...) \
  (type == KT_Q4_K ? NAME<KT_Q4_K __VA_ARGS__> : type == KT_Q6_K ? NAME<KT_Q6_K __VA_ARGS__> : type == KT_Q8_0 ? NAME<KT_Q8_0 __VA_ARGS__> : type == KT_Q4_0 ? NAME<KT_Q4_0 __VA_ARGS__> : NAME<0 __VA_ARGS__>)
#define COMMA ,

static bool pairs_fit(const kt_ctx *ctx, stream_args &a, int streams, const kt_product &p, kt_frows x, const kt_expert_pairs &e) {
  a.num_parts = 1;
  a.n = (int)x.n;
  a.x = x.data;
  a.x_stride = x.stride;
  a.x_rows = (int)x.count;
  a.pairs = e;
  a.act = p.act;
  a.parts[0] = with_bytes({p.w.data, p.up.data, p.out, p.bias, p.up_bias, (int)p.rows, 0, 0, 0}, p.w);
  a.out_stride = p.out_stride;
  return can_stream(ctx, p.w, x.n) && e.tokens * e.k <= MAX_PAIRS && e.matrix_stride % 16 == 0 && aligned16(x.data) && (x.count == 1 || x.stride % 4 == 0) &&
         slots_for(a, streams, held_bytes(x.count, x.n)) >= 2;
}

bool kt_gpu_stream_pairs(kt_ctx *ctx, const kt_product &p, kt_frows x, const kt_expert_pairs &e, kt_status_t *status) {
  stream_args a = {};
  if (!pairs_fit(ctx, a, 2, p, x, e)) return false;
  const uint32_t type = a.parts[0].type;
  a.total = (int)(e.tokens * e.k * p.rows);
  *status = launch(ctx, OF_TYPE(stream_pairs_kernel, ), a, held_bytes(x.count, x.n));
  return true;
}

bool kt_gpu_stream_down(kt_ctx *ctx, const kt_product &p, kt_frows x, const kt_expert_pairs &e, const float *weights, int64_t weights_stride, bool known_ids, kt_status_t *status) {
  stream_args a = {};
  if (!pairs_fit(ctx, a, 1, p, x, e)) return false;
  const uint32_t type = a.parts[0].type;
  a.add = p.add;
  a.weights = weights;
  a.weights_stride = weights_stride;
  a.known_ids = known_ids;
  a.total = (int)(e.tokens * p.rows);
  *status = launch(ctx, OF_TYPE(stream_down_kernel, ), a, held_bytes(x.count, x.n));
  return true;
}

bool kt_gpu_stream_fits(int64_t pairs, int64_t n, const kt_tensor_t *down) {
  stream_args a = {};
  a.num_parts = 1;
  a.n = (int)n;
  a.parts[0] = with_bytes({}, kt_weight_of(down));
  return pairs <= MAX_PAIRS && n % 32 == 0 && slots_for(a, 1, held_bytes(pairs, n)) >= 2;
}
#else
bool kt_gpu_stream_pairs(kt_ctx *, const kt_product &, kt_frows, const kt_expert_pairs &, kt_status_t *) { return false; }
bool kt_gpu_stream_down(kt_ctx *, const kt_product &, kt_frows, const kt_expert_pairs &, const float *, int64_t, bool, kt_status_t *) { return false; }
bool kt_gpu_stream_fits(int64_t, int64_t, const kt_tensor_t *) { return false; }
#endif
