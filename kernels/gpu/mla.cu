/* Latent attention of kt_paged_attention on Hopper.
 * SHAPES       q [tokens, heads, 576] f32, cache [pages, 1, page_size, 576] f16 or bf16 whose first 512 values are the values, out [tokens, heads, 512]
 * DEFINITION   as kt_paged_attention; queries and weights of keys in the cache's type, sums in f32
 * REGULARITIES 16 .. 128 heads share all keys. A block has 64 rows, each a head of a token of one sequence. Its two groups of four warps take
 *              turns: one computes the scores of a tile and hands its weights to the other, each multiplies them by its half of the
 *              columns. A warp of its own has pages copied. One copy of a tile serves as keys and as values. Long sequences are divided
 *              among blocks, whose results combine_kernel joins */
#include "async.cuh"
#include "attention.cuh"
#include "wgmma.cuh"
#if KT_HAS_MMA
#include <cuda.h>

#define K_DIM 576
#define V_DIM 512
#define ROWS 64
#define KEYS 64
#define GROUP_THREADS 128
#define CONSUMERS (2 * GROUP_THREADS)
#define THREADS (CONSUMERS + GROUP_THREADS) /* groups of warps have their registers in common */
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
#define STAGES 2
#define QUERY_PIECES 6 /* of 8 values, that a thread has on their way at once */
#define BLOCK_BYTES (64 * 128)               /* 64 rows of 64 halves */
#define TILE_BYTES (K_DIM / 64 * BLOCK_BYTES) /* 64 rows of 576 */
#define HANDED_BYTES (GROUP_THREADS * (4 * KEYS / 16 + 2) * 4) /* weights and greatest scores, of each thread to its like */
#define SHARED_BYTES ((1 + STAGES) * TILE_BYTES + HANDED_BYTES + 1024 + 64)
#define PART (V_DIM + 4) /* sums, greatest score, sum of weights */

/* Where 16 bytes of a row lie: blocks of 64 columns one behind the other, in each the pieces of a row shuffled as the tensor cores
 * expect it of rows of 128 bytes. */
__device__ __forceinline__ uint32_t place_of(int row, int piece) { return (uint32_t)(piece / 8 * BLOCK_BYTES + row * 128 + ((piece % 8 ^ row % 8) << 4)); }

/* A matrix in shared memory: `apart` bytes between blocks of 64 columns (of values alone), 1024 between groups of eight rows. */
__device__ __forceinline__ uint64_t matrix_at(uint32_t address, uint32_t apart) {
  return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(apart >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}

struct mla_job {
  attention_job a;
  int per_block, head_blocks, splits; /* tokens of a block, blocks of a token */
  float *partials;                    /* [tokens][heads][splits][PART] */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ float exp2_of(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
#define KEYS_PRODUCT(TYPE) \
  asm volatile( \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;\n}\n" \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), \
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), \
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), \
        "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]) \
      : "l"(a), "l"(b), "r"(add))
#define VALUES_PRODUCT(TYPE) \
  asm volatile( \
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, {%128, %129, %130, %131}, %132, p, 1, 1, 1;\n}\n" \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), \
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), \
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), \
        "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), \
        "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), \
        "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), \
        "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), \
        "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]), \
        "+f"(c[64]), "+f"(c[65]), "+f"(c[66]), "+f"(c[67]), "+f"(c[68]), "+f"(c[69]), "+f"(c[70]), "+f"(c[71]), \
        "+f"(c[72]), "+f"(c[73]), "+f"(c[74]), "+f"(c[75]), "+f"(c[76]), "+f"(c[77]), "+f"(c[78]), "+f"(c[79]), \
        "+f"(c[80]), "+f"(c[81]), "+f"(c[82]), "+f"(c[83]), "+f"(c[84]), "+f"(c[85]), "+f"(c[86]), "+f"(c[87]), \
        "+f"(c[88]), "+f"(c[89]), "+f"(c[90]), "+f"(c[91]), "+f"(c[92]), "+f"(c[93]), "+f"(c[94]), "+f"(c[95]), \
        "+f"(c[96]), "+f"(c[97]), "+f"(c[98]), "+f"(c[99]), "+f"(c[100]), "+f"(c[101]), "+f"(c[102]), "+f"(c[103]), \
        "+f"(c[104]), "+f"(c[105]), "+f"(c[106]), "+f"(c[107]), "+f"(c[108]), "+f"(c[109]), "+f"(c[110]), "+f"(c[111]), \
        "+f"(c[112]), "+f"(c[113]), "+f"(c[114]), "+f"(c[115]), "+f"(c[116]), "+f"(c[117]), "+f"(c[118]), "+f"(c[119]), \
        "+f"(c[120]), "+f"(c[121]), "+f"(c[122]), "+f"(c[123]), "+f"(c[124]), "+f"(c[125]), "+f"(c[126]), "+f"(c[127]) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

/* c [64 x 64] (+)= rows of a . rows of b, 16 columns. */
template <bool BF16> __device__ __forceinline__ void multiply_keys(float (&c)[32], uint64_t a, uint64_t b, int add) {
  if constexpr (BF16) KEYS_PRODUCT("bf16");
  else KEYS_PRODUCT("f16");
}

/* c [64 x 256] += a . b, a 16 columns of weights in registers, b 16 rows of values. */
template <bool BF16> __device__ __forceinline__ void multiply_values(float (&c)[128], const uint32_t *a, uint64_t b) {
  if constexpr (BF16) VALUES_PRODUCT("bf16");
  else VALUES_PRODUCT("f16");
}
#endif

template <bool BF16> __global__ void __launch_bounds__(THREADS, 1) mla_kernel(const mla_job m, const __grid_constant__ CUtensorMap pages) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t memory[];
  const attention_job &job = m.a;
  const uint32_t base = (kt_shared(memory) + 1023) & ~1023u, handed = base + (1 + STAGES) * TILE_BYTES, barriers = handed + HANDED_BYTES;
  const int thread = threadIdx.x, lane = thread % KT_WARP;
  const int head0 = blockIdx.y * ROWS, heads = min(ROWS, job.group - head0);
  if (thread == CONSUMERS) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&pages) : "memory");
    for (int stage = 0; stage < STAGES; stage++) {
      kt_barrier_init(barriers + 16 * stage, 1);                       /* copied */
      kt_barrier_init(barriers + 16 * stage + 8, CONSUMERS / KT_WARP); /* read */
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  kt_wait_previous();
  kt_start_next();
  /* which sequence's tokens: blocks are counted through the sequences, 32 of these at a time */
  int sequence = -1, first = 0, last = 0, length = 0;
  for (int at = 0, passed = 0; at < job.sequences && sequence < 0; at += KT_WARP) {
    const int s = min(at + lane, job.sequences - 1), from = job.query_start[s], until = job.query_start[s + 1], keys = job.seq_lens[s];
    const int blocks = at + lane < job.sequences ? (until - from + m.per_block - 1) / m.per_block : 0;
    int through = blocks;
#pragma unroll
    for (int step = 1; step < KT_WARP; step *= 2) {
      const int before = __shfl_up_sync(KT_FULL_MASK, through, step);
      if (lane >= step) through += before;
    }
    const uint32_t found = __ballot_sync(KT_FULL_MASK, passed + through > (int)blockIdx.x);
    const int owner = found != 0 ? __ffs(found) - 1 : KT_WARP - 1;
    first = __shfl_sync(KT_FULL_MASK, from + ((int)blockIdx.x - passed - through + blocks) * m.per_block, owner);
    last = __shfl_sync(KT_FULL_MASK, until, owner);
    length = __shfl_sync(KT_FULL_MASK, keys, owner);
    if (found != 0) sequence = at + owner;
    passed += __shfl_sync(KT_FULL_MASK, through, KT_WARP - 1);
  }
  if (sequence < 0) return;
  const int count = min(m.per_block, last - first);
  const auto sight_at = [&](int token) { return sight_from(job, sequence, length, last, first + token); };
  /* tiles begin at whole pages */
  const int begin_all = sight_at(0).begin / KEYS * KEYS, end_all = sight_at(count - 1).end;
  const int tiles = (end_all - begin_all + KEYS - 1) / KEYS, each = (tiles + m.splits - 1) / m.splits;
  const int begin = begin_all + (int)blockIdx.z * each * KEYS, end = min(end_all, begin + each * KEYS);
  if (thread >= CONSUMERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    const int32_t *table = job.block_tables + sequence * job.table_stride;
    const int rows = min(job.page_size, KEYS); /* of one copy */
    for (int n = 0;; n++) {
      if (n == STAGES) __syncthreads(); /* the others go on, what they wait for is on its way */
      const int tile = begin + n * KEYS;
      if (n >= STAGES && (tile >= end || thread != CONSUMERS)) return;
      if (tile >= end || thread != CONSUMERS) continue;
      const int stage = n % STAGES;
      const uint32_t copied = barriers + 16 * stage, to = base + (1 + stage) * TILE_BYTES;
      const int pieces = (min(KEYS, end - tile) + rows - 1) / rows;
      if (n >= STAGES) kt_barrier_wait(copied + 8, (n / STAGES - 1) & 1);
      kt_barrier_expect(copied, pieces * rows * K_DIM * 2);
      for (int i = 0; i < pieces; i++) {
        const int key = tile + i * rows, page = table[key / job.page_size], row = key % job.page_size;
        for (int column = 0; column < K_DIM / 64; column++)
          asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
                           to + column * BLOCK_BYTES + i * rows * 128),
                       "l"(&pages), "r"(column * 64), "r"(row), "r"(page), "r"(copied)
                       : "memory");
      }
    }
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  /* queries, zeros where there is no row; in base 2 */
  for (int from = thread; from < ROWS * (K_DIM / 8); from += QUERY_PIECES * CONSUMERS) {
    float4 low[QUERY_PIECES], high[QUERY_PIECES];
#pragma unroll
    for (int j = 0; j < QUERY_PIECES; j++) {
      const int i = from + j * CONSUMERS, row = i / (K_DIM / 8), piece = i % (K_DIM / 8), token = row / heads;
      low[j] = high[j] = make_float4(0, 0, 0, 0);
      if (token >= count) continue;
      const float4 *q = (const float4 *)(job.q.data + (first + token) * job.q.token_stride + (head0 + row % heads) * job.q.head_stride + piece * 8);
      low[j] = q[0], high[j] = q[1];
    }
#pragma unroll
    for (int j = 0; j < QUERY_PIECES; j++) {
      const int i = from + j * CONSUMERS, row = i / (K_DIM / 8);
      float scale = job.params.scale * LOG2_E;
      if (job.params.temperature_scale != 0)
        scale *= 1.0f + job.params.temperature_scale * logf(1.0f + floorf((float)(sight_at(min(row / heads, count - 1)).position + 1) / job.params.temperature_floor));
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(base + place_of(row, i % (K_DIM / 8))), "r"(halves<BF16>(low[j].x * scale, low[j].y * scale)),
                   "r"(halves<BF16>(low[j].z * scale, low[j].w * scale)), "r"(halves<BF16>(high[j].x * scale, high[j].y * scale)), "r"(halves<BF16>(high[j].z * scale, high[j].w * scale)));
    }
  }
  asm volatile("fence.proxy.async;" ::: "memory"); /* the tensor cores see what was written */
  __syncthreads();
  const int side = thread / GROUP_THREADS, like = thread % GROUP_THREADS, warp = like / KT_WARP;
  const uint32_t own_weights = handed + like * 16, own_scores = handed + GROUP_THREADS * KEYS / 16 * 16 + like * 8;
  /* a thread's two rows */
  sight seen[2];
  bool wanted[2];
  int64_t row_token[2];
  int row_head[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = warp * 16 + half * 8 + lane / 4, token = row / heads;
    wanted[half] = token < count;
    row_token[half] = first + min(token, count - 1);
    row_head[half] = head0 + row % heads;
    seen[half] = sight_at(min(token, count - 1));
    seen[half].end = min(seen[half].end, end);
  }
  const int all_from = sight_at(count - 1).begin, all_until = min(end, sight_at(0).end); /* keys that all rows see */
  float out[128], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}; /* sums of the tiles whose scores the group computed */
#pragma unroll
  for (int i = 0; i < 128; i++) out[i] = 0;
  for (int tile = begin, n = 0; tile < end; tile += KEYS, n++) {
    const uint32_t keys = base + (1 + n % STAGES) * TILE_BYTES, copied = barriers + 16 * (n % STAGES);
    const float before[2] = {most[0], most[1]};
    uint32_t weights[KEYS / 16][4];
    float added[2] = {0, 0};
    if (n % 2 == side) {
      kt_barrier_wait(copied, n / STAGES & 1);
      if (tile + KEYS > end) {
        /* what lies behind the last key is nobody's: weights of 0 do not make it 0 */
        for (int i = (end - tile) * (K_DIM / 8) + like; i < KEYS * (K_DIM / 8); i += GROUP_THREADS)
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(keys + place_of(i / (K_DIM / 8), i % (K_DIM / 8))), "r"(0));
        asm volatile("fence.proxy.async;" ::: "memory");
        asm volatile("bar.sync %0, %1;" ::"r"(3 + side), "n"(GROUP_THREADS) : "memory");
      }
      float scores[32];
      kt_wgmma_fence();
#pragma unroll
      for (int k = 0; k < K_DIM / 16; k++) {
        const uint32_t at = k / 4 * BLOCK_BYTES + k % 4 * 32;
        multiply_keys<BF16>(scores, matrix_at(base + at, 16), matrix_at(keys + at, 16), k > 0);
      }
      kt_wgmma_commit();
      kt_wgmma_wait<0>();
      if (job.params.soft_cap != 0)
#pragma unroll
        for (int i = 0; i < 32; i++) scores[i] = job.params.soft_cap * LOG2_E * tanhf(scores[i] * (LN_2 / job.params.soft_cap));
      if (tile < all_from || tile + KEYS > all_until)
#pragma unroll
        for (int i = 0; i < 32; i++) {
          const int key = tile + i / 4 * 8 + lane % 4 * 2 + i % 2, half = i / 2 % 2;
          if (key < seen[half].begin || key >= seen[half].end) scores[i] = -INFINITY;
        }
#pragma unroll
      for (int i = 0; i < 32; i++) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], scores[i]);
      float least[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        most[half] = fmaxf(most[half], __shfl_xor_sync(KT_FULL_MASK, most[half], 1));
        most[half] = fmaxf(most[half], __shfl_xor_sync(KT_FULL_MASK, most[half], 2));
        least[half] = most[half] == -INFINITY ? 0.0f : most[half];
      }
#pragma unroll
      for (int i = 0; i < 32; i++) {
        scores[i] = exp2_of(scores[i] - least[i / 2 % 2]);
        added[i / 2 % 2] += scores[i];
      }
#pragma unroll
      for (int k = 0; k < KEYS / 16; k++) {
#pragma unroll
        for (int j = 0; j < 4; j++) weights[k][j] = halves<BF16>(scores[8 * k + 2 * j], scores[8 * k + 2 * j + 1]);
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(own_weights + k * GROUP_THREADS * 16), "r"(weights[k][0]), "r"(weights[k][1]), "r"(weights[k][2]), "r"(weights[k][3]));
      }
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(own_scores), "f"(most[0]), "f"(most[1]));
      asm volatile("bar.arrive %0, %1;" ::"r"(1 + side), "n"(CONSUMERS) : "memory");
    } else {
      asm volatile("bar.sync %0, %1;" ::"r"(2 - side), "n"(CONSUMERS) : "memory");
#pragma unroll
      for (int k = 0; k < KEYS / 16; k++)
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(weights[k][0]), "=r"(weights[k][1]), "=r"(weights[k][2]), "=r"(weights[k][3]) : "r"(own_weights + k * GROUP_THREADS * 16));
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(most[0]), "=f"(most[1]) : "r"(own_scores));
      kt_barrier_wait(copied, n / STAGES & 1);
    }
    float shrink[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      /* a row that saw no key yet has nothing to shrink */
      shrink[half] = exp2_of(before[half] - (most[half] == -INFINITY ? 0.0f : most[half]));
      sum[half] = sum[half] * shrink[half] + added[half];
    }
    if (__any_sync(KT_FULL_MASK, shrink[0] != 1.0f || shrink[1] != 1.0f))
#pragma unroll
      for (int i = 0; i < 128; i++) out[i] *= shrink[i / 2 % 2];
    kt_wgmma_fence();
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) multiply_values<BF16>(out, weights[k], matrix_at(keys + side * 4 * BLOCK_BYTES + k * 16 * 128, BLOCK_BYTES));
    kt_wgmma_commit();
    kt_wgmma_wait<0>();
    if (lane == 0) kt_barrier_arrive(copied + 8);
  }
  /* each group's sums for the other */
#pragma unroll
  for (int half = 0; half < 2; half++) {
    sum[half] += __shfl_xor_sync(KT_FULL_MASK, sum[half], 1);
    sum[half] += __shfl_xor_sync(KT_FULL_MASK, sum[half], 2);
  }
  asm volatile("bar.sync 5, %0;" ::"n"(CONSUMERS) : "memory");
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(handed + thread * 8), "f"(sum[0]), "f"(sum[1]));
  asm volatile("bar.sync 5, %0;" ::"n"(CONSUMERS) : "memory");
  float others[2];
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(others[0]), "=f"(others[1]) : "r"(handed + (thread ^ GROUP_THREADS) * 8));
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (!wanted[half]) continue;
    const float total = sum[half] + others[half];
    float *to, factor;
    const float natural = most[half] * LN_2;
    if (m.splits > 1) {
      to = m.partials + ((row_token[half] * job.q.heads + row_head[half]) * m.splits + blockIdx.z) * PART;
      factor = 1.0f;
      if (side == 0 && lane % 4 == 0) to[V_DIM] = natural, to[V_DIM + 1] = total;
    } else {
      to = job.out + row_token[half] * job.out_token_stride + row_head[half] * job.out_head_stride;
      if (job.sinks != NULL) {
        float all;
        const join j = join_of(natural, job.sinks[row_head[half]], &all);
        factor = j.before / (total * j.before + j.after);
      } else {
        factor = 1.0f / total;
      }
    }
#pragma unroll
    for (int n = 0; n < 32; n++) {
      const int column = side * 256 + n * 8 + lane % 4 * 2;
      *(float2 *)(to + column) = make_float2(out[4 * n + 2 * half] * factor, out[4 * n + 2 * half + 1] * factor);
    }
  }
#endif
}

/* Heads of tokens are rows. SHARE warps have one, each a part in SHARE of them, and PIECES times 128 columns of it. A row's last parts
 * may have had no keys. */
#define COMBINE_WARPS 8
template <int SHARE, int PIECES> __global__ void __launch_bounds__(COMBINE_WARPS * KT_WARP) mla_combine_kernel(const mla_job m) {
  __shared__ float4 sums[COMBINE_WARPS][PIECES * KT_WARP];
  __shared__ float totals[COMBINE_WARPS];
  kt_wait_previous();
  kt_start_next();
  const int warp = threadIdx.x / KT_WARP, lane = threadIdx.x % KT_WARP, column0 = (int)blockIdx.y * PIECES * 128;
  const int64_t row = blockIdx.x * (int64_t)(COMBINE_WARPS / SHARE) + warp / SHARE, head = row % m.a.q.heads;
  if (SHARE == 1 && row >= m.a.q.tokens * m.a.q.heads) return;
  const float *from = m.partials + row * m.splits * PART;
  const float sink = m.a.sinks != NULL ? m.a.sinks[head] : -INFINITY;
  float most = sink;
  for (int s = lane; s < m.splits; s += KT_WARP) most = fmaxf(most, from[s * PART + V_DIM]);
  most = kt_warp_max(most);
  float total = 0;
  float4 values[PIECES] = {};
#pragma unroll 4
  for (int s = warp % SHARE; s < m.splits; s += SHARE) {
    const float *part = from + s * PART;
    const float factor = expf(part[V_DIM] - most);
    total += part[V_DIM + 1] * factor;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      const float4 v = *(const float4 *)(part + column0 + (i * KT_WARP + lane) * 4);
      values[i].x += v.x * factor, values[i].y += v.y * factor, values[i].z += v.z * factor, values[i].w += v.w * factor;
    }
  }
  if (SHARE > 1) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) sums[warp][i * KT_WARP + lane] = values[i];
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    if (warp > 0) return;
    for (int w = 1; w < SHARE; w++) {
      total += totals[w];
#pragma unroll
      for (int i = 0; i < PIECES; i++) {
        const float4 v = sums[w][i * KT_WARP + lane];
        values[i].x += v.x, values[i].y += v.y, values[i].z += v.z, values[i].w += v.w;
      }
    }
  }
  if (m.a.sinks != NULL) total += expf(sink - most);
  float *to = m.a.out + row / m.a.q.heads * m.a.out_token_stride + head * m.a.out_head_stride + column0;
#pragma unroll
  for (int i = 0; i < PIECES; i++) *(float4 *)(to + (i * KT_WARP + lane) * 4) = make_float4(values[i].x / total, values[i].y / total, values[i].z / total, values[i].w / total);
}

/* So many rows have a warp each; of fewer all warps share one. */
#define MANY_ROWS 1024
static kt_status_t combine(kt_ctx *ctx, const mla_job &m) {
  const int64_t rows = m.a.q.tokens * m.a.q.heads;
  if (rows >= MANY_ROWS) return kt_launch_early(ctx, mla_combine_kernel<1, 4>, dim3((unsigned)kt_div_up(rows, COMBINE_WARPS)), COMBINE_WARPS * KT_WARP, 0, m);
  return kt_launch_early(ctx, mla_combine_kernel<COMBINE_WARPS, 1>, dim3((unsigned)rows, V_DIM / 128), COMBINE_WARPS * KT_WARP, 0, m);
}

typedef CUresult (*encode_function)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                                    CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's function, which is looked up so that the library loads without a driver; NULL where it has none. */
static encode_function encoder(void) {
  static encode_function found = NULL;
  if (found == NULL) {
    void *function = NULL;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result) == cudaSuccess && result == cudaDriverEntryPointSuccess)
      found = (encode_function)function;
    cudaGetLastError();
  }
  return found;
}

/* Pages of 16-bit values as [pages][page_size][576], copied 64 columns of a page (of at most 64 rows) at a time. */
static bool describe_pages(const attention_job &job, CUtensorMap *out) {
  const encode_function encode = encoder();
  if (encode == NULL) return false;
  const cuuint64_t sizes[3] = {K_DIM, (cuuint64_t)job.page_size, (cuuint64_t)job.pages}, strides[2] = {(cuuint64_t)job.k.slot_stride, (cuuint64_t)job.k.page_stride};
  const cuuint32_t box[3] = {64, (cuuint32_t)(job.page_size < KEYS ? job.page_size : KEYS), 1}, steps[3] = {1, 1, 1};
  return encode(out, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, job.k.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool kt_gpu_takes_mla(kt_ctx *ctx, const attention_job &job) {
  if (job.page_size < 8 || (job.page_size & (job.page_size - 1)) != 0 || encoder() == NULL) return false;
  if (ctx->precision != KT_PRECISION_FAST || ctx->capability != 90 || ctx->shared_bytes < SHARED_BYTES) return false;
  if (job.q.dim != K_DIM || job.v_dim != V_DIM || job.kv_heads != 1 || job.k.data != job.v.data || job.group < 4) return false;
  if (job.k.page_stride != job.v.page_stride || job.k.slot_stride != job.v.slot_stride) return false;
  const uintptr_t apart = (uintptr_t)job.k.data | (uintptr_t)job.k.page_stride | (uintptr_t)job.k.slot_stride;
  const uintptr_t floats = (uintptr_t)job.q.data | (uintptr_t)(4 * job.q.token_stride) | (uintptr_t)(4 * job.q.head_stride) | (uintptr_t)job.out |
                           (uintptr_t)(4 * job.out_token_stride) | (uintptr_t)(4 * job.out_head_stride);
  return (apart | floats) % 16 == 0;
}

kt_status_t kt_gpu_mla(kt_ctx *ctx, attention_job job, bool bf16) {
  const auto kernel = bf16 ? mla_kernel<true> : mla_kernel<false>;
  mla_job m = {job, job.group >= ROWS ? 1 : ROWS / job.group, (int)kt_div_up(job.group, ROWS), 1, NULL};
  int64_t blocks = kt_div_up(job.q.tokens, m.per_block) + job.sequences;
  if (blocks > job.q.tokens) blocks = job.q.tokens;
  /* The lengths lie on the device: parts for the longest that may be. */
  const int64_t tiles = kt_div_up(job.max_keys, KEYS), splits = ctx->multiprocessors / (blocks * m.head_blocks);
  m.splits = (int)(splits < 1 ? 1 : splits > tiles ? tiles : splits);
  if (m.splits > 1) {
    void *partials = NULL;
    KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PARTIAL, job.q.tokens * job.q.heads * m.splits * PART * 4, &partials));
    m.partials = (float *)partials;
  }
  CUtensorMap pages;
  if (!describe_pages(job, &pages)) return kt_gpu_fail(KT_ERR_INTERNAL, "the driver takes no cache of pages %lld bytes apart", (long long)job.k.page_stride);
  KT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES));
  KT_TRY(kt_launch_early(ctx, kernel, dim3((unsigned)blocks, (unsigned)m.head_blocks, (unsigned)m.splits), THREADS, SHARED_BYTES, m, pages));
  return m.splits > 1 ? combine(ctx, m) : KT_OK;
}
#endif
