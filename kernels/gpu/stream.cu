/* Products of experts for a few rows of activations: blocks that stay, a warp a row, weights by bulk copies.
 * SHAPES       x [rows, n] f32, codes made here; packed weights of stacks of experts
 * DEFINITION   out[pair][r] = act(gate . x, up . x) of the pair's expert; out[token][r] (+)= sum of its pairs' w[r] . x times their weights
 * REGULARITIES one block a multiprocessor; each warp has its own ring of chunks in shared memory (KT_SEGMENT columns of a row), filled
 *              before the kernel waits for the one ahead of it where ids are known, so that memory is read while that one ends. Shared
 *              memory leaves room for a second block, which is the next kernel's */
#include "activation.cuh"
#include "async.cuh"
#include "codes.cuh"

#if KT_HAS_MMA
#define WARPS 16
#define THREADS (WARPS * KT_WARP)
#define MAX_SLOTS 8
/* Shared memory of a block: two fit a multiprocessor. */
#define SHARED_BYTES (110 * 1024)
#define BARRIER_BYTES (WARPS * MAX_SLOTS * 8)
#define MAX_PAIRS 128

struct stream_args {
  kt_stream_part part;
  int n, slots, slot_bytes;
  const float *x; /* [x_rows][n] */
  int64_t x_stride;
  int x_rows;
  bool add;
  uint32_t act;
  /* experts */
  kt_expert_pairs pairs;
  const float *weights; /* of pairs, or NULL: ones */
  int64_t weights_stride, out_stride;
  bool known_ids; /* nobody who runs still writes ids */
};

#if __CUDA_ARCH__ >= 900
/* w: the segment of `columns` columns; c: the piece. */
template <uint32_t TYPE> __device__ __forceinline__ float times(const uint8_t *w, int columns, int c, const inputs<TYPE> &x) {
  kt_piece<TYPE> piece;
  piece.load(w, columns, c);
  return piece.dot(x);
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

/* Codes of x's rows into shared memory; all threads. The first values are loaded before. */
#define QUADS_AT_ONCE 4
struct row_walk {
  int row, quad, quads;
  /* i-th quad of all rows, i growing by THREADS */
  __device__ __forceinline__ row_walk(int first, int quads_) : row(first / quads_), quad(first - first / quads_ * quads_), quads(quads_) {}
  __device__ __forceinline__ void next() {
    quad += THREADS;
    while (quad >= quads) quad -= quads, row++;
  }
};
__device__ __forceinline__ void load_rows(const stream_args &a, row_walk &at, float4 *v) {
#pragma unroll
  for (int j = 0; j < QUADS_AT_ONCE; j++) {
    v[j] = at.row < a.x_rows ? __ldcg((const float4 *)(a.x + at.row * a.x_stride) + at.quad) : make_float4(0, 0, 0, 0);
    at.next();
  }
}
__device__ __forceinline__ void quantize_rows(const stream_args &a, uint8_t *codes, int codes_bytes, float4 *scales, row_walk &ahead, float4 *v) {
  const int quads = a.n / 4, all = quads * a.x_rows, thread = threadIdx.x;
  row_walk at(thread, quads);
  for (int base = 0; base < all; base += QUADS_AT_ONCE * THREADS) {
    if (base > 0) load_rows(a, ahead, v);
#pragma unroll
    for (int j = 0; j < QUADS_AT_ONCE; j++, at.next()) {
      if (base + j * THREADS >= all) break;
      const int row = at.row, column = at.quad;
      const bool own = row < a.x_rows;
      kt_store_codes(v[j], column, own, codes + row * codes_bytes, scales + row * (a.n / 32));
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

/* Units one after the other, `step` apart, as groups of `rows`: without divisions. */
struct unit_walk {
  int group, row, rows, groups_each, rows_each;
  __device__ __forceinline__ unit_walk(int first, int step, int rows_)
      : group(first / rows_), row(first % rows_), rows(rows_), groups_each(step / rows_), rows_each(step % rows_) {}
  __device__ __forceinline__ void next() {
    group += groups_each, row += rows_each;
    if (row >= rows) row -= rows, group++;
  }
};

/* A pair's rows of gate and up: out[pair][row]. */
template <uint32_t TYPE> __global__ void __launch_bounds__(THREADS, 2) stream_pairs_kernel(const __grid_constant__ stream_args a) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ int ids[MAX_PAIRS];
  const int lane = threadIdx.x % KT_WARP, chunks = (a.n + KT_SEGMENT - 1) / KT_SEGMENT, rows = a.part.rows, k = (int)a.pairs.k, num_pairs = (int)a.pairs.tokens * k;
  const int first = (int)(threadIdx.x / KT_WARP * gridDim.x + blockIdx.x), step = (int)gridDim.x * WARPS;
  const int codes_bytes = kt_code_bytes(a.n), blocks = a.n / 32, token = (int)threadIdx.x / k;
  uint8_t *codes = memory + BARRIER_BYTES + WARPS * a.slots * a.slot_bytes;
  float4 *scales = (float4 *)(codes + codes_bytes * a.x_rows);
  const kt_stream_part &p = a.part;
  ring r;
  r.begin(a, memory);
  unit_walk ahead(first, step, rows), at = ahead;
  row_walk walk((int)threadIdx.x, a.n / 4);
  float4 values[QUADS_AT_ONCE];
  kt_wait_previous();
  int id = -1;
  if ((int)threadIdx.x < num_pairs) id = __ldcg(a.pairs.ids + token * a.pairs.ids_stride + ((int)threadIdx.x - token * k));
  load_rows(a, walk, values);
  if ((int)threadIdx.x < num_pairs) ids[threadIdx.x] = id;
  __syncthreads();
  int ahead_chunk = 0;
  const auto issue = [&]() {
    /* rows of experts outside the stack have no chunks */
    while (ahead.group < num_pairs && (uint32_t)ids[ahead.group] >= (uint32_t)a.pairs.experts) ahead.next();
    if (ahead.group >= num_pairs) return;
    const int64_t from = ids[ahead.group] * a.pairs.matrix_stride + (int64_t)ahead.row * p.row_bytes + ahead_chunk * p.segment_bytes;
    r.issue<2>(p.w + from, p.up + from, ahead_chunk + 1 < chunks ? p.segment_bytes : p.row_bytes - ahead_chunk * p.segment_bytes);
    if (++ahead_chunk == chunks) ahead_chunk = 0, ahead.next();
  };
  for (int i = 0; i < a.slots; i++) issue();
  quantize_rows(a, codes, codes_bytes, scales, walk, values);
  __syncthreads();
  kt_start_next();
  for (; at.group < num_pairs; at.next()) {
    const int pair = at.group, row = at.row, expert = ids[pair];
    float *to = p.out + pair * a.out_stride + row;
    if ((uint32_t)expert >= (uint32_t)a.pairs.experts) {
      if (lane == 0) *to = __int_as_float(0x7fc00000);
      continue;
    }
    const int x_row = a.pairs.rows_by_pair ? pair : a.x_rows == 1 ? 0 : pair / k;
    float acc[2] = {0, 0};
    for (int chunk = 0; chunk < chunks; chunk++) {
      segment_sums<TYPE, 2>(r.next(), a.slot_bytes / 2, min(KT_SEGMENT, a.n - chunk * KT_SEGMENT), codes + x_row * codes_bytes + chunk * KT_SEGMENT,
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
#define PAIRS_AT_ONCE 4
template <uint32_t TYPE> __global__ void __launch_bounds__(THREADS, 2) stream_down_kernel(const __grid_constant__ stream_args a) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ const uint8_t *matrices[MAX_PAIRS]; /* NULL: outside the stack */
  __shared__ float weights[MAX_PAIRS];
  __shared__ int ids[MAX_PAIRS];
  constexpr int VALUES = TYPE == KT_Q8_0 ? 16 : 32;
  const int lane = threadIdx.x % KT_WARP, chunks = (a.n + KT_SEGMENT - 1) / KT_SEGMENT, rows = a.part.rows, k = (int)a.pairs.k, tokens = (int)a.pairs.tokens;
  const int first = (int)(threadIdx.x / KT_WARP * gridDim.x + blockIdx.x), step = (int)gridDim.x * WARPS;
  const int codes_bytes = kt_code_bytes(a.n), blocks = a.n / 32;
  uint8_t *codes = memory + BARRIER_BYTES + WARPS * a.slots * a.slot_bytes;
  float4 *scales = (float4 *)(codes + codes_bytes * a.x_rows);
  const kt_stream_part &p = a.part;
  ring r;
  r.begin(a, memory);
  unit_walk ahead(first, step, rows), at = ahead;
  row_walk walk((int)threadIdx.x, a.n / 4);
  if (!a.known_ids) kt_wait_previous();
  bool is_known = true;
  if ((int)threadIdx.x < a.x_rows) {
    const int token = (int)threadIdx.x / k, j = (int)threadIdx.x - token * k, id = __ldcg(a.pairs.ids + token * a.pairs.ids_stride + j);
    is_known = (uint32_t)id < (uint32_t)a.pairs.experts;
    ids[threadIdx.x] = id;
    matrices[threadIdx.x] = is_known ? p.w + id * a.pairs.matrix_stride : NULL;
    weights[threadIdx.x] = a.weights == NULL ? 1.0f : __ldcg(a.weights + token * a.weights_stride + j);
  }
  /* rows that a warp's lanes take at once, of experts that are all there */
  const bool all_known = __syncthreads_and(is_known), short_rows = all_known && a.n <= KT_WARP * VALUES && k % PAIRS_AT_ONCE == 0 && a.slots >= PAIRS_AT_ONCE && p.bias == NULL;
  int ahead_pair = 0, ahead_chunk = 0;
  const auto issue = [&]() {
    while (ahead.group < tokens) {
      const uint8_t *matrix = matrices[ahead.group * k + ahead_pair];
      if (matrix != NULL)
        r.issue<1>(matrix + (int64_t)ahead.row * p.row_bytes + ahead_chunk * p.segment_bytes, NULL, ahead_chunk + 1 < chunks ? p.segment_bytes : p.row_bytes - ahead_chunk * p.segment_bytes);
      if (matrix == NULL || ++ahead_chunk == chunks) {
        ahead_chunk = 0;
        if (++ahead_pair == k) ahead_pair = 0, ahead.next();
      }
      if (matrix != NULL) return;
    }
  };
  for (int i = 0; i < a.slots; i++) issue();
  if (a.known_ids) kt_wait_previous();
  float4 values[QUADS_AT_ONCE];
  load_rows(a, walk, values);
  quantize_rows(a, codes, codes_bytes, scales, walk, values);
  __syncthreads();
  kt_start_next();
  if (short_rows) {
    const int pieces = a.n / VALUES, own = min(lane, pieces - 1), x0 = first_place<TYPE>(own), x1 = second_place<TYPE>(own), scale = scale_place<TYPE>(own);
    for (; at.group < tokens; at.next()) {
      const int pair0 = at.group * k;
      float *to = p.out + at.group * a.out_stride + at.row, acc = 0, before = 0;
      if (lane == 0 && a.add) before = __ldcg(to);
      const uint8_t *x = codes + pair0 * codes_bytes, *s = (const uint8_t *)(scales + pair0 * blocks);
      for (int j = 0; j < k; j += PAIRS_AT_ONCE) {
        const uint8_t *w[PAIRS_AT_ONCE];
#pragma unroll
        for (int i = 0; i < PAIRS_AT_ONCE; i++) w[i] = r.next();
#pragma unroll
        for (int i = 0; i < PAIRS_AT_ONCE; i++, x += codes_bytes, s += blocks * 16) {
          inputs<TYPE> in;
          in.load(x, s, x0, x1, scale);
          acc += weights[pair0 + j + i] * times<TYPE>(w[i], a.n, own, in);
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < PAIRS_AT_ONCE; i++) issue();
      }
      acc = kt_warp_sum(lane < pieces ? acc : 0.0f);
      if (lane == 0) *to = a.add ? before + acc : acc;
    }
    return;
  }
  for (; at.group < tokens; at.next()) {
    float *to = p.out + at.group * a.out_stride + at.row;
    float before = 0;
    if (lane == 0 && a.add) before = __ldcg(to);
    float acc = 0;
    for (int j = 0; j < k; j++) {
      const int pair = at.group * k + j;
      if (matrices[pair] == NULL) {
        acc = __int_as_float(0x7fc00000);
        continue;
      }
      float own = 0;
      for (int chunk = 0; chunk < chunks; chunk++) {
        segment_sums<TYPE, 1>(r.next(), 0, min(KT_SEGMENT, a.n - chunk * KT_SEGMENT), codes + pair * codes_bytes + chunk * KT_SEGMENT,
                          (const uint8_t *)(scales + pair * blocks + chunk * (KT_SEGMENT / 32)), lane, &own);
        __syncwarp();
        issue();
      }
      if (lane == 0 && p.bias != NULL) own += __ldg(p.bias + (int64_t)ids[pair] * rows + at.row);
      acc += weights[pair] * own;
    }
    acc = kt_warp_sum(acc);
    if (lane == 0) *to = a.add ? before + acc : acc;
  }
#endif
}

static bool aligned16(const void *p) { return (uintptr_t)p % 16 == 0; }

static bool can_stream(const kt_ctx *ctx, const kt_weight &w, int64_t n) { return kt_has_bulk(ctx) && kt_has_int8(w.type) && n % 32 == 0 && aligned16(w.data); }

/* Slots of each warp's ring beside `held` bytes of activations; 0 where there is no room for two. */
static int slots_for(stream_args &a, int streams, int64_t held) {
  a.slot_bytes = streams * (a.n > KT_SEGMENT ? a.part.segment_bytes : a.part.row_bytes);
  const int64_t slots = (SHARED_BYTES - BARRIER_BYTES - held) / (WARPS * a.slot_bytes);
  a.slots = (int)(slots > MAX_SLOTS ? MAX_SLOTS : slots);
  return a.slots >= 2 ? a.slots : 0;
}

static int64_t held_bytes(int64_t rows, int64_t n) { return rows * kt_code_row_bytes((int)n); }

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

/* The kernel of a type. */
#define OF_TYPE(NAME) (type == KT_Q4_K ? NAME<KT_Q4_K> : type == KT_Q6_K ? NAME<KT_Q6_K> : type == KT_Q8_0 ? NAME<KT_Q8_0> : type == KT_Q4_0 ? NAME<KT_Q4_0> : NAME<KT_Q4_1>)

static bool pairs_fit(const kt_ctx *ctx, stream_args &a, int streams, const kt_product &p, kt_frows x, const kt_expert_pairs &e) {
  a.n = (int)x.n;
  a.x = x.data;
  a.x_stride = x.stride;
  a.x_rows = (int)x.count;
  a.pairs = e;
  a.act = p.act;
  a.part = with_bytes({p.w.data, p.up.data, p.out, p.bias, p.up_bias, (int)p.rows, 0, 0, 0}, p.w);
  a.out_stride = p.out_stride;
  return can_stream(ctx, p.w, x.n) && e.tokens * e.k <= MAX_PAIRS && e.matrix_stride % 16 == 0 && aligned16(x.data) && (x.count == 1 || x.stride % 4 == 0) &&
         slots_for(a, streams, held_bytes(x.count, x.n)) >= 2;
}

bool kt_gpu_stream_pairs(kt_ctx *ctx, const kt_product &p, kt_frows x, const kt_expert_pairs &e, kt_status_t *status) {
  stream_args a = {};
  if (!pairs_fit(ctx, a, 2, p, x, e)) return false;
  const uint32_t type = a.part.type;
  *status = launch(ctx, OF_TYPE(stream_pairs_kernel), a, held_bytes(x.count, x.n));
  return true;
}

bool kt_gpu_stream_down(kt_ctx *ctx, const kt_product &p, kt_frows x, const kt_expert_pairs &e, const float *weights, int64_t weights_stride, bool known_ids, kt_status_t *status) {
  stream_args a = {};
  if (!pairs_fit(ctx, a, 1, p, x, e)) return false;
  const uint32_t type = a.part.type;
  a.add = p.add;
  a.weights = weights;
  a.weights_stride = weights_stride;
  a.known_ids = known_ids;
  *status = launch(ctx, OF_TYPE(stream_down_kernel), a, held_bytes(x.count, x.n));
  return true;
}

bool kt_gpu_stream_fits(int64_t pairs, int64_t n, const kt_tensor_t *down) {
  stream_args a = {};
  a.n = (int)n;
  a.part = with_bytes({}, kt_weight_of(down));
  return pairs <= MAX_PAIRS && n % 32 == 0 && slots_for(a, 1, held_bytes(pairs, n)) >= 2;
}
#else
bool kt_gpu_stream_pairs(kt_ctx *, const kt_product &, kt_frows, const kt_expert_pairs &, kt_status_t *) { return false; }
bool kt_gpu_stream_down(kt_ctx *, const kt_product &, kt_frows, const kt_expert_pairs &, const float *, int64_t, bool, kt_status_t *) { return false; }
bool kt_gpu_stream_fits(int64_t, int64_t, const kt_tensor_t *) { return false; }
#endif
